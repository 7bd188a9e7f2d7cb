import re

import numpy as np
import pytest

from jaxadv.report import tables


def make(**kwargs):
  fields = {
    "title": "Attacks <all>",
    "columns": ["attack", "accuracy", "time"],
    "rows": [
      ["pgd [bold]x[/bold]", 0.0312, "1.2 s"],
      ["a|b\nc & <d>", np.float32(0.5), None],
    ],
    "note": "judged *afresh* & <checked>",
    "formats": {"accuracy": ".1%"},
  }
  return tables.Table(**(fields | kwargs))


def test_text_has_aligned_formatted_cells():
  text = tables.to_text(make(rows=[["fgsm", 0.5, "10.0 s"], ["p", 0.03, None]]))
  lines = text.splitlines()
  assert lines[0] == "Attacks <all>"
  assert " ".join(lines[5:]) == "judged *afresh* & <checked>"
  first, second = lines[3], lines[4]
  assert first.index("50.0%") + 5 == second.index("3.0%") + 4
  assert second.endswith("–")


def test_text_keeps_markup_and_is_never_cut():
  assert "pgd [bold]x[/bold]" in tables.to_text(make())
  wide = make(rows=[["x" * 300, 1.0, ""]])
  assert "x" * 300 in tables.to_text(wide)


@pytest.mark.parametrize(
  ("cell", "numeric"),
  [
    (3, True),
    (np.int64(3), True),
    (np.float32(0.5), True),
    ("93.1 %", True),
    ("8/255", True),
    ("12.3 ± 0.4", True),
    ("-1.5e-3", True),
    ("4,310,022", True),
    ("pgd", False),
    ("L2 0.5", False),
    ("2-step pgd", False),
    (True, False),
    (None, False),
    ("–", False),
  ],
)
def test_numeric_columns_are_aligned_right(cell, numeric):
  table = tables.Table("", ["value"], [[cell]])
  assert ('class="num"' in tables.to_html(table)) == numeric
  assert ("---:" in tables.to_markdown(table)) == numeric


def test_one_word_makes_a_column_text_but_a_missing_cell_does_not():
  table = tables.Table("", ["a", "b"], [[1, 1], ["no", None], [2, "–"]])
  head = tables.to_html(table).split("</thead>")[0]
  assert re.findall(r"<th ([^>]*)>", head) == [
    'scope="col"',
    'scope="col" class="num"',
  ]


def test_html_escapes_every_text():
  html = tables.to_html(make(columns=["<i>", "accuracy", "time"]))
  assert "&lt;i&gt;" in html
  assert "&lt;all&gt;" in html
  assert "&amp; &lt;d&gt;" in html
  assert "&amp; &lt;checked&gt;" in html
  assert not set(re.findall(r"</?(\w+)", html)) - {
    *("div", "table", "caption", "thead", "tbody", "tr", "th", "td", "p")
  }


def test_markdown_is_one_line_per_row():
  assert tables.to_markdown(make()).splitlines() == [
    "**Attacks &lt;all>**",
    "",
    "| attack | accuracy | time |",
    "| :--- | ---: | ---: |",
    "| pgd [bold]x[/bold] | 3.1% | 1.2 s |",
    "| a\\|b c & &lt;d> | 50.0% | – |",
    "",
    "*judged *afresh* & &lt;checked>*",
  ]


@pytest.mark.parametrize(
  "render",
  [tables.to_rich, tables.to_text, tables.to_html, tables.to_markdown],
)
def test_malformed_tables_are_refused(render):
  with pytest.raises(ValueError, match=r"rows\[0\] has 1 cells for 3"):
    render(make(rows=[["only"]]))
  with pytest.raises(ValueError, match=r"formats names .'speed'"):
    render(make(formats={"speed": ".1f"}))


def test_a_table_without_rows_is_a_table():
  table = make(rows=[])
  assert "<tbody>" in tables.to_html(table)
  assert "attack" in tables.to_text(table)
