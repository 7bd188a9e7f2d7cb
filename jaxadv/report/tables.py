"""Tables of results: one value, written for a terminal, a page or a document.

A `Table` is plain data. Cells are strings, numbers or `None` (shown as a
dash). A column whose cells are all numbers, or read as numbers with at most a
short unit ("93.1 %", "8/255", "1.2 s", "12.3 ± 0.4"), is aligned right.
"""

import html
import io
import numbers
import re
import types
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich import box, console, text
from rich import table as rich_table

_EMPTY = "–"
_BLANK = ("", "-", "–", "—")
_NUMBER = re.compile(
  r"[-+−±~<>≤≥]?\s?\d[\d.,/±+\-−\s]*(e[-+]?\d+)?\s?(%|[a-zµ]{1,3})?"
)


class Table(NamedTuple):
  """A table of results.

  Attributes:
    title: Printed above the table.
    columns: Column names.
    rows: One sequence of cells per row, as long as `columns`.
    note: Small print below the table; empty for none.
    formats: Format specification per column name, applied to the cells of
      that column that are numbers, such as `{"accuracy": ".1%"}`.
  """

  title: str
  columns: Sequence[str]
  rows: Sequence[Sequence[Any]]
  note: str = ""
  formats: Mapping[str, str] = types.MappingProxyType({})


def to_rich(table: Table) -> rich_table.Table:
  """The table for `rich.print`; cells are text, never console markup.

  Raises:
    ValueError: A row has another length than `columns`, or `formats` names a
      column that is not there.
  """
  out = rich_table.Table(
    title=text.Text(table.title, style="bold"),
    title_justify="left",
    caption=text.Text(table.note, style="dim") if table.note else None,
    caption_justify="left",
    box=box.SIMPLE_HEAD,
    pad_edge=False,
    show_edge=False,
  )
  rows = _cells(table)
  for name, numeric in zip(table.columns, _numeric(table, rows), strict=True):
    out.add_column(text.Text(name), justify="right" if numeric else "left")
  for row in rows:
    out.add_row(*map(text.Text, row))
  return out


def to_text(table: Table) -> str:
  """The table as plain text, as wide as its cells need.

  >>> print(to_text(Table("Robustness", ["attack", "accuracy"],
  ...                     [["fgsm", 0.5], ["pgd", 0.125]],
  ...                     formats={"accuracy": ".1%"})))
  Robustness
  attack   accuracy
  ─────────────────
  fgsm        50.0%
  pgd         12.5%

  Raises:
    ValueError: As `to_rich`.
  """
  stream = io.StringIO()
  printer = console.Console(
    file=stream, width=10_000, color_system=None, force_terminal=False
  )
  printer.print(to_rich(table))
  lines = (line.rstrip() for line in stream.getvalue().splitlines())
  return "\n".join(line for line in lines if line)


def to_html(table: Table) -> str:
  """The table as one `<table>` element, with every text escaped.

  Raises:
    ValueError: As `to_rich`.
  """
  rows = _cells(table)
  marks = [' class="num"' if n else "" for n in _numeric(table, rows)]

  def line(tag: str, attribute: str, cells: Sequence[str]) -> str:
    return "".join(
      f"<{tag}{attribute}{mark}>{html.escape(cell)}</{tag}>"
      for mark, cell in zip(marks, cells, strict=True)
    )

  head = line("th", ' scope="col"', table.columns)
  body = "\n".join(f"<tr>{line('td', '', row)}</tr>" for row in rows)
  note = f'<p class="note">{html.escape(table.note)}</p>' if table.note else ""
  return (
    f'<div class="table"><table><caption>{html.escape(table.title)}</caption>\n'
    f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>"
    f"{note}</div>"
  )


def to_markdown(table: Table) -> str:
  """The table in GitHub's Markdown: bold title, pipes, note in italics.

  Raises:
    ValueError: As `to_rich`.
  """
  rows = _cells(table)
  marks = ["---:" if n else ":---" for n in _numeric(table, rows)]
  lines = [
    f"| {' | '.join(map(_markdown_cell, row))} |"
    for row in [table.columns, *rows]
  ]
  lines.insert(1, f"| {' | '.join(marks)} |")
  title = [f"**{_markdown_cell(table.title)}**", ""] if table.title else []
  note = ["", f"*{_markdown_cell(table.note)}*"] if table.note else []
  return "\n".join([*title, *lines, *note]) + "\n"


def _markdown_cell(cell: str) -> str:
  cell = cell.replace("|", "\\|").replace("<", "&lt;")
  return " ".join(cell.split())


def _is_number(cell: Any) -> bool:
  return isinstance(cell, numbers.Number) and not isinstance(cell, bool)


def _cells(table: Table) -> list[list[str]]:
  """The rows as strings, checked."""
  unknown = set(table.formats) - set(table.columns)
  if unknown:
    raise ValueError(
      f"formats names {sorted(unknown)}, which are not among the columns "
      f"{list(table.columns)}: use the column's name."
    )
  formats = [table.formats.get(name, "") for name in table.columns]
  rows = []
  for index, row in enumerate(table.rows):
    if len(row) != len(formats):
      raise ValueError(
        f"rows[{index}] has {len(row)} cells for {len(formats)} columns: "
        "give one cell per column, None for an empty one."
      )
    rows.append([_cell(c, f) for c, f in zip(row, formats, strict=True)])
  return rows


def _cell(cell: Any, spec: str) -> str:
  if cell is None:
    return _EMPTY
  # NumPy arrays of no dimension format as their scalar does.
  return format(cell, spec) if _is_number(cell) else str(cell)


def _numeric(table: Table, rows: Sequence[Sequence[str]]) -> list[bool]:
  """Which columns hold numbers only."""
  out = []
  for index in range(len(table.columns)):
    pairs = [
      (row[index], cells[index])
      for row, cells in zip(table.rows, rows, strict=True)
      if cells[index] not in _BLANK
    ]
    out.append(
      bool(pairs)
      and all(
        _is_number(raw) or _NUMBER.fullmatch(cell.strip()) is not None
        for raw, cell in pairs
      )
    )
  return out
