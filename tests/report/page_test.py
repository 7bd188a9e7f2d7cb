import base64
import collections
import html.parser
import io
import os
import re

import numpy as np
import pytest
from matplotlib import figure
from PIL import Image

from jaxadv.report import curves, images, page, style, tables

VOID = {"meta", "link", "br", "img", "hr", "input"}


class Checker(html.parser.HTMLParser):
  """Fails on tags that do not match; collects ids, links and text."""

  def __init__(self):
    super().__init__()
    self.open, self.ids, self.links = [], [], []
    self.tags, self.text = collections.Counter(), ""

  def handle_starttag(self, tag, attrs):
    self.handle_startendtag(tag, attrs)
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags[tag] += 1
    names = [name for name, _ in attrs]
    assert len(names) == len(set(names)), (tag, attrs)
    for name, value in attrs:
      if name == "id":
        self.ids.append(value)
      elif name in ("href", "src", "xlink:href"):
        self.links.append(value)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if "style" not in self.open:
      self.text += data


def check(text):
  checker = Checker()
  checker.feed(text)
  checker.close()
  assert checker.open == []
  return checker


def sample():
  curve = {"a & <b>": ([0.0, 0.1], [0.9, 0.1]), "c": ([0.0, 0.1], [0.9, 0.4])}
  x = np.linspace(0, 1, 2 * 36, dtype=np.float32).reshape(2, 6, 6, 1)
  classes = np.array([0, 1])
  return [
    page.Section(
      "One <script>",
      "First & last.\n\nSecond.",
      [tables.Table("T<1>", ["n"], [[1]]), curves.robustness_curve(curve)],
    ),
    page.Section(
      "Two", items=["between", curves.robustness_curve(curve, title="<t>")]
    ),
    page.Section(
      "Three",
      items=[
        images.adversarial_grid(
          x, 1 - x, classes, classes, classes[::-1], ["zero", "one"]
        )
      ],
    ),
  ]


def test_page_is_one_self_contained_file(tmp_path):
  path = tmp_path / "new" / "report.html"
  page.write(path, "Results <of> x", sample(), subtitle="a & b")
  text = path.read_text(encoding="utf-8")
  assert os.listdir(path.parent) == ["report.html"]
  assert text.startswith("<!doctype html>")
  found = check(text)
  assert "http" not in text
  assert found.tags["script"] == found.tags["link"] == 0
  assert found.tags["table"] == 1
  assert found.tags["svg"] == found.tags["figure"] == 3
  assert not re.search(r"url\((?!#)", text)
  assert all(link.startswith(("#", "data:image/png")) for link in found.links)


def test_ids_are_unique_and_every_reference_has_its_target():
  twins = images.grid([np.zeros((2, 4, 4))], ["equal"])
  text = page.render("t", [*sample(), page.Section("twins", items=[twins])])
  found = check(text)
  assert len(found.ids) == len(set(found.ids))
  references = {link[1:] for link in found.links if link.startswith("#")}
  references |= set(re.findall(r"url\(#([^)]*)\)", text))
  assert references
  assert references <= set(found.ids)


def test_text_is_escaped_and_complete():
  found = check(page.render("Results <of> x", sample(), subtitle="a & b"))
  for words in (
    *("Results <of> x", "a & b", "One <script>", "First & last.", "Second."),
    *("between", "T<1>", "a & <b>", "<t>"),
  ):
    assert words in found.text
  assert found.tags["p"] == 4


def test_images_are_inlined_at_their_own_resolution():
  text = page.render("t", sample())
  pictures = re.findall(r'href="data:image/png;base64,([^"]*)"', text)
  assert len(pictures) == 6
  sizes = {
    Image.open(io.BytesIO(base64.b64decode(data))).size for data in pictures
  }
  assert sizes == {(6, 6)}
  assert "pixelated" in text


def test_figures_follow_the_theme():
  fig = curves.robustness_curve({"a": ([0, 1], [1, 0])})
  svg = page.to_svg(fig, prefix="p", label='a "b"')
  assert svg.startswith('<svg role="img" aria-label="a &quot;b&quot;"')
  assert "var(--ink)" in svg
  assert "var(--paper)" in svg
  for color in (style.INK, style.MUTED, style.RULE, style.PAPER):
    assert color not in svg
  template = page.render("t", [])
  assert set(re.findall(r"var\((--\w+)\)", svg)) <= set(
    re.findall(r"(--\w+):", template)
  )


def test_the_same_page_has_the_same_bytes():
  assert page.render("t", sample()) == page.render("t", sample())


def test_a_foreign_figure_is_welcome():
  fig = figure.Figure()
  fig.subplots().plot([0, 1])
  assert check(page.render("t", [page.Section("s", items=[fig])])).tags["svg"]


def test_a_failed_rendering_leaves_the_old_page(tmp_path):
  path = tmp_path / "report.html"
  path.write_text("old")
  broken = figure.Figure()
  broken.text(0, 0, r"$\nonsense$")
  for item, error in (
    (3, TypeError),
    (tables.Table("", ["a"], [[1, 2]]), ValueError),
    (broken, ValueError),
  ):
    with pytest.raises(error):
      page.write(path, "t", [page.Section("s", items=[item])])
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["report.html"]


def test_a_failed_move_leaves_nothing_behind(tmp_path):
  path = tmp_path / "report.html"
  path.mkdir()
  with pytest.raises(OSError):
    page.write(path, "t", [])
  assert os.listdir(tmp_path) == ["report.html"]
