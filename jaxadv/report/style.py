"""The look shared by every figure of a report.

Figures are built on `matplotlib.figure.Figure` alone, without pyplot and its
global state. The named colours below are distinct
hexadecimal values on purpose: `page` finds them in the SVG text and replaces
them by CSS variables, which is how a figure follows the reader's light or dark
theme. The series colours are Paul Tol's "vibrant" scheme, which stays readable
under the common kinds of colour blindness and on both backgrounds; markers
and dashes repeat the distinction for print.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib import axes, figure, lines

INK = "#1c2128"
MUTED = "#69707a"
RULE = "#e2e4e7"
PAPER = "#fdfdfb"
RIGHT = "#00796b"
WRONG = "#c0341d"

SERIES = (
  "#0077bb",
  "#ee7733",
  "#009988",
  "#ee3377",
  "#33bbee",
  "#cc3311",
  "#8a8a8a",
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", ":", "-.")

# Of the height of the axes: a line of text at the sizes of `curves`.
_LABEL_GAP = 0.075


class End(NamedTuple):
  """The last point of a series, in data coordinates, and how to name it."""

  label: str
  color: str
  x: float
  y: float
  mean: float


def draw(
  ax: axes.Axes,
  x: npt.NDArray[Any],
  y: npt.NDArray[Any],
  label: str,
  look: Mapping[str, Any],
) -> End:
  """Draws one series in the `look` of `series_style`; returns its end."""
  # Not clipped: the ends of a curve often lie on the frame, at 0 or 100.
  ax.plot(
    x,
    y,
    label=label,
    linewidth=1.9,
    markersize=4.5,
    markeredgewidth=0,
    clip_on=False,
    zorder=3,
    **look,
  )
  return End(
    label, look["color"], float(x[-1]), float(y[-1]), float(np.mean(y))
  )


def series_style(index: int) -> dict[str, Any]:
  """Colour, marker and dash of series number `index`; 28 are distinct."""
  return {
    "color": SERIES[index % len(SERIES)],
    "marker": MARKERS[index % len(MARKERS)],
    "linestyle": DASHES[index // len(SERIES) % len(DASHES)],
  }


def new_figure(width: float, height: float) -> figure.Figure:
  """An empty figure of `width` by `height` inches on the report's paper."""
  fig = figure.Figure(figsize=(width, height), facecolor=PAPER)
  fig.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
  return fig


def dress(ax: axes.Axes, title: str, xlabel: str, ylabel: str) -> None:
  """Gives axes the report's frame: a base line, light rules, a left title."""
  ax.set_facecolor("none")
  for side in ("top", "right", "left"):
    ax.spines[side].set_visible(False)
  ax.spines["bottom"].set_color(MUTED)
  ax.grid(axis="y", color=RULE, linewidth=0.8)
  ax.set_axisbelow(True)
  ax.tick_params(colors=MUTED, labelsize=9, length=0, pad=6)
  ax.tick_params(axis="x", length=3)
  ax.set_xlabel(xlabel, color=INK, fontsize=10)
  ax.set_ylabel(ylabel, color=INK, fontsize=10)
  ax.set_title(
    title, loc="left", color=INK, fontsize=11.5, fontweight="bold", pad=12
  )


def spread(positions: Sequence[float], gap: float) -> list[float]:
  """Moves ascending positions in [0, 1] apart by `gap`, as little as needed."""
  gap = min(gap, 1.0 / max(len(positions) - 1, 1))
  moved: list[float] = []
  for position in positions:
    moved.append(max(position, moved[-1] + gap) if moved else position)
  ceiling = max(1.0, *positions)
  for i in reversed(range(len(moved))):
    moved[i] = min(moved[i], ceiling)
    ceiling = moved[i] - gap
  return moved


def label_ends(ax: axes.Axes, ends: Sequence[End]) -> None:
  """Names each series at the right of the axes, with a leader to its end.

  Needs the final limits of the axes. Series that end at the same height are
  stacked in the order of their mean height, so the names read as the curves.
  """
  ends = sorted(ends, key=lambda end: (end.y, end.mean))
  to_axes = ax.transScale + ax.transLimits
  points = [tuple(to_axes.transform((end.x, end.y))) for end in ends]
  heights = spread([y for _, y in points], _LABEL_GAP)
  for end, (x, y), height in zip(ends, points, heights, strict=True):
    leader = lines.Line2D(
      [x, 1.015, 1.04, 1.06],
      [y, y, height, height],
      color=end.color,
      linewidth=1.0,
      alpha=0.7,
      transform=ax.transAxes,
      clip_on=False,
      label="_leader",
    )
    ax.add_artist(leader)
    ax.text(
      1.075,
      height,
      end.label,
      color=INK,
      fontsize=9.5,
      va="center",
      transform=ax.transAxes,
    )
