"""One self-contained HTML file: text, tables and figures, nothing external.

Figures are inlined as SVG, in which photographs and digits stay PNG at their
own resolution (base64): small, sharp at every zoom, and able to follow the
reader's light or dark theme, for text and rules take their colours from CSS
variables. Not for concurrent use: Matplotlib keeps its SVG settings globally.
"""

import html
import io
import os
import pathlib
import re
from collections.abc import Sequence
from importlib import resources
from typing import NamedTuple

import jinja2
import matplotlib
from matplotlib import figure

from jaxadv.report import style, tables

_VARIABLES = {
  style.INK: "var(--ink)",
  style.MUTED: "var(--muted)",
  style.RULE: "var(--rule)",
  style.PAPER: "var(--paper)",
  style.RIGHT: "var(--right)",
  style.WRONG: "var(--wrong)",
}
# Ids that nothing refers to, and which figures or equal images would repeat.
_PLAIN_ID = re.compile(r' id="([\w.]+_\d+|image[0-9a-f]+)"')
_NAMESPACE = re.compile(r' xmlns(:\w+)?="[^"]*"')


class Section(NamedTuple):
  """A part of the page.

  Attributes:
    title: Its heading.
    text: Plain text below the heading; a blank line starts a paragraph.
    items: Tables, figures and plain strings, in the order of reading.
  """

  title: str
  text: str = ""
  items: Sequence[tables.Table | figure.Figure | str] = ()


class _Block(NamedTuple):
  """An item as the template wants it; `markup` is trusted, the rest is not."""

  kind: str
  markup: str = ""
  paragraphs: Sequence[str] = ()


def write(
  path: str | os.PathLike[str],
  title: str,
  sections: Sequence[Section],
  *,
  subtitle: str = "",
) -> None:
  """Renders the sections and writes them to `path` in one move.

  The file is complete or absent (or what it was before): the text is written
  beside it under a temporary name, then renamed.

  Args:
    path: The HTML file; missing folders are made.
    title: The title of the page.
    sections: Its parts.
    subtitle: One line below the title, such as the model and the date.

  Raises:
    TypeError: An item is no table, figure or string.
    ValueError: A table is malformed.
  """
  text = render(title, sections, subtitle=subtitle)
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f".{path.name}.{os.getpid()}")
  try:
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def render(
  title: str, sections: Sequence[Section], *, subtitle: str = ""
) -> str:
  """The page that `write` writes, as a string; the errors are the same."""
  source = resources.files("jaxadv.report").joinpath("page.html")
  template = jinja2.Environment(
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  ).from_string(source.read_text(encoding="utf-8"))
  parts = []
  for index, section in enumerate(sections):
    blocks = [_Block("text", paragraphs=_paragraphs(section.text))]
    for position, item in enumerate(section.items):
      blocks.append(_block(item, f"s{index}i{position}", section.title))
    parts.append({"title": section.title, "blocks": blocks})
  return template.render(title=title, subtitle=subtitle, sections=parts)


def to_svg(fig: figure.Figure, *, prefix: str, label: str) -> str:
  """A figure as one `<svg>` element to be put inside an HTML page.

  Args:
    fig: The figure.
    prefix: Makes the ids of this figure differ from those of the others on the
      page; equal prefixes give equal text.
    label: What a screen reader says of it.
  """
  stream = io.StringIO()
  nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
  with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": prefix}):
    fig.savefig(stream, format="svg", metadata=nothing)
  text = stream.getvalue()
  # An inline element has no prologue, namespaces or comments.
  text = text[text.index("<svg") :]
  text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
  text = _PLAIN_ID.sub("", _NAMESPACE.sub("", text))
  text = text.replace("xlink:href=", "href=")
  for color, variable in _VARIABLES.items():
    text = text.replace(color, variable)
  attributes = f'role="img" aria-label="{html.escape(label)}"'
  return text.replace("<svg", f"<svg {attributes}", 1)


def _paragraphs(text: str) -> list[str]:
  return [p.strip() for p in re.split(r"\n\s*\n", text) if p.strip()]


def _block(
  item: tables.Table | figure.Figure | str, prefix: str, label: str
) -> _Block:
  if isinstance(item, str):
    return _Block("text", paragraphs=_paragraphs(item))
  if isinstance(item, tables.Table):
    return _Block("table", markup=tables.to_html(item))
  if isinstance(item, figure.Figure):
    titles = [ax.get_title("left") for ax in item.axes]
    label = next((t for t in titles if t), label)
    return _Block("figure", markup=to_svg(item, prefix=prefix, label=label))
  raise TypeError(
    f"items has a {type(item).__name__}: pass a tables.Table, a "
    "matplotlib.figure.Figure or a string."
  )
