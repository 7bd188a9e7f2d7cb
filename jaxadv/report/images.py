"""Grids of images: clean, perturbation and adversarial, one above the other.

Images are [H, W, 1], [H, W, 3], [H, W] or flat vectors whose size is a square
number (784 is shown as 28 x 28), with values in [0, 1].
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib import axes, figure

from jaxadv.report import style

_TILE = 1.12  # inches
# Projections onto the bounds leave rounding errors of this order.
_SLACK = 1e-3
# Characters of a caption that fit under one tile.
_CAPTION = 13


def grid(
  rows: Sequence[npt.NDArray[np.floating]],
  row_titles: Sequence[str],
  column_titles: Sequence[str] | None = None,
) -> figure.Figure:
  """Rows of images, each row under one title.

  Args:
    rows: One array [N, ...] of N images per row, in [0, 1]; N is common.
    row_titles: One per row, written at its left.
    column_titles: One per image of a row, written at the top.

  Returns:
    The figure, one axes per image, row by row.

  Raises:
    ValueError: No image, rows of different lengths, a number of titles that
      does not match, or images of another form or range than stated above.
  """
  return _grid(rows, row_titles, column_titles)[0]


def adversarial_grid(
  x: npt.NDArray[np.floating],
  x_adv: npt.NDArray[np.floating],
  labels: npt.NDArray[np.integer],
  predictions_clean: npt.NDArray[np.integer],
  predictions_adv: npt.NDArray[np.integer],
  class_names: Sequence[str],
  num: int = 8,
) -> figure.Figure:
  """The first `num` examples: clean, perturbation, adversarial.

  The perturbation is drawn on a scale of its own, symmetric around 0 and
  common to the row: mid-grey is 0, white (or a full colour channel) is
  +max|delta| and black is -max|delta|, where max|delta| over the examples shown
  is written at the left. Captions read "label → prediction", in red where the
  model is wrong.

  Args:
    x: Clean images [N, ...].
    x_adv: Adversarial images, of the shape of `x`.
    labels: True classes [N].
    predictions_clean: What the model says of `x` [N].
    predictions_adv: What the model says of `x_adv` [N].
    class_names: Name per class.
    num: How many examples to show, at most.

  Returns:
    The figure.

  Raises:
    ValueError: Arrays of different lengths, a class without a name, or as
      `grid`.
  """
  x, x_adv = np.asarray(x), np.asarray(x_adv)
  classes = [
    _classes(name, values, len(x), len(class_names))
    for name, values in (
      ("labels", labels),
      ("predictions_clean", predictions_clean),
      ("predictions_adv", predictions_adv),
    )
  ]
  if x.shape != x_adv.shape or num < 1:
    raise ValueError(
      f"x has shape {x.shape}, x_adv {x_adv.shape} and num is {num}: pass "
      "images of one shape and show at least one."
    )
  x, x_adv = x[:num], x_adv[:num]
  delta = x_adv.astype(np.float64) - x
  scale = float(np.max(np.abs(delta), initial=0.0))
  shown = 0.5 + 0.5 * delta / (scale or 1.0)
  titles = ("clean", f"perturbation\n±{scale:.3g}", "adversarial")
  fig, tiles = _grid((x, shown, x_adv), titles, None)
  for row, predictions in ((0, classes[1]), (2, classes[2])):
    for ax, label, said in zip(
      tiles[row], classes[0], predictions, strict=False
    ):
      _caption(ax, class_names[label], class_names[said], bool(label == said))
  return fig


def _grid(
  rows: Sequence[npt.NDArray[np.floating]],
  row_titles: Sequence[str],
  column_titles: Sequence[str] | None,
) -> tuple[figure.Figure, npt.NDArray[np.object_]]:
  """`grid`, with the axes of its images [rows, columns]."""
  num = len(rows[0]) if len(rows) else 0
  if not num or any(len(row) != num for row in rows):
    raise ValueError(
      f"rows has {[len(row) for row in rows]} images per row: give every row "
      "the same number, at least one."
    )
  if len(row_titles) != len(rows) or len(column_titles or [""] * num) != num:
    raise ValueError(
      f"row_titles {row_titles} and column_titles {column_titles} do not match "
      f"{len(rows)} rows of {num} images: give one title each."
    )
  width = _TILE * num + 1.1
  fig = style.new_figure(width, (_TILE + 0.22) * len(rows) + 0.1)
  tiles = fig.subplots(len(rows), num, squeeze=False)
  fig.set_layout_engine(
    "compressed", w_pad=0.03, h_pad=0.04, wspace=0.0, hspace=0.0
  )
  for index, (row, title) in enumerate(zip(rows, row_titles, strict=True)):
    for ax, image in zip(tiles[index], row, strict=True):
      _tile(ax, _image(f"rows[{index}]", image))
    tiles[index, 0].set_ylabel(
      title, rotation=0, ha="right", va="center", color=style.INK, fontsize=10
    )
  for ax, title in zip(tiles[0], column_titles or (), strict=False):
    ax.set_title(title, color=style.INK, fontsize=9.5)
  return fig, tiles


def _image(
  name: str, image: npt.NDArray[np.floating]
) -> npt.NDArray[np.floating]:
  """One image as [H, W] or [H, W, 3] in [0, 1]."""
  image = np.asarray(image)
  side = math.isqrt(image.size)
  if image.ndim == 1 and side * side == image.size:
    image = image.reshape(side, side)
  elif image.ndim == 3 and image.shape[-1] == 1:
    image = image[..., 0]
  if not (image.ndim == 2 or (image.ndim == 3 and image.shape[-1] == 3)):
    raise ValueError(
      f"{name} has images of shape {image.shape}: pass [H, W, 1], [H, W, 3], "
      "[H, W] or vectors of a square size."
    )
  if not np.all((image >= -_SLACK) & (image <= 1.0 + _SLACK)):
    raise ValueError(
      f"{name} has values in [{image.min():g}, {image.max():g}]: scale the "
      "images to [0, 1]."
    )
  return np.clip(image, 0.0, 1.0)


def _tile(ax: axes.Axes, image: npt.NDArray[np.floating]) -> None:
  # Without interpolation an SVG keeps the image's own pixels.
  ax.imshow(image, cmap="gray", vmin=0.0, vmax=1.0, interpolation="none")
  ax.set_xticks([])
  ax.set_yticks([])
  for spine in ax.spines.values():
    spine.set_color(style.RULE)


def _caption(ax: axes.Axes, label: str, said: str, right: bool) -> None:
  short = len(label) + len(said) + 3 <= _CAPTION
  ax.set_xlabel(
    f"{label} → {said}" if short else f"{label}\n→ {said}",
    color=style.RIGHT if right else style.WRONG,
    fontsize=8.5,
    labelpad=3,
  )


def _classes(
  name: str, values: npt.NDArray[np.integer], num: int, num_classes: int
) -> npt.NDArray[np.integer]:
  out = np.asarray(values)
  if out.shape != (num,) or not np.all((out >= 0) & (out < num_classes)):
    raise ValueError(
      f"{name} has shape {out.shape}, values up to {out.max(initial=0)}: give "
      f"one class below {num_classes} (len(class_names)) per image ({num})."
    )
  return out
