"""Curves: accuracy against the radius, success against steps, training runs.

Every function takes plain arrays and returns a `matplotlib.figure.Figure`.
Accuracies, success rates and confidences come in as fractions in [0, 1] and
are drawn in percent, from 0 to 100: a robustness curve on a cropped axis
misleads. Series are named at their ends rather than in a legend.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import axes, figure

from jaxadv.report import style

Array = npt.ArrayLike


def robustness_curve(
  curves: Mapping[str, tuple[Array, Array]],
  *,
  xlabel: str = "radius ε",
  title: str = "Accuracy under attack",
  bands: Mapping[str, tuple[Array, Array]] | None = None,
) -> figure.Figure:
  """Accuracy against the size of the perturbation, one line per model/attack.

  Args:
    curves: Per label `(eps[K], accuracy[K])`: radii in the units in which they
      should be read, ascending, and accuracies as fractions in [0, 1].
    xlabel: What `eps` is; also serves a measured distance.
    title: Above the axes.
    bands: Per label, of any subset of the labels, `(low[K], high[K])` as
      fractions: a bootstrap or percentile interval, drawn as a shade.

  Returns:
    The figure.

  Raises:
    ValueError: Nothing to draw, lengths that differ, radii that descend,
      accuracies outside [0, 1], or a band without its curve.
  """
  bands = {} if bands is None else bands
  _check_not_empty("curves", curves)
  if set(bands) - set(curves):
    raise ValueError(
      f"bands has labels {sorted(set(bands) - set(curves))} that curves lacks: "
      f"use the labels of curves, {list(curves)}."
    )
  fig, ax = _percent_axes(title, xlabel, "accuracy (%)")
  ends = []
  for index, (label, (eps, accuracy)) in enumerate(curves.items()):
    x = np.asarray(eps, np.float64)
    y = _percent(f"curves[{label!r}]", accuracy, x.shape)
    if not x.size or not np.all(np.diff(x) >= 0):
      raise ValueError(
        f"curves[{label!r}] has eps {x}: give at least one, ascending."
      )
    look = style.series_style(index)
    if label in bands:
      low, high = (
        _percent(f"bands[{label!r}]", bound, x.shape) for bound in bands[label]
      )
      ax.fill_between(x, low, high, color=look["color"], alpha=0.16, lw=0)
    ends.append(style.draw(ax, x, y, label, look))
  _fit_x(ax, ends, [np.asarray(eps) for eps, _ in curves.values()])
  style.label_ends(ax, ends)
  return fig


def success_against_steps(
  results: Mapping[str, tuple[Array, Array]],
  *,
  xlabel: str = "steps",
  title: str = "Success against budget",
) -> figure.Figure:
  """How many examples an attack has broken within a budget, as a step plot.

  Args:
    results: Per label `(steps[N], success[N])`, one entry per example: the
      steps (or queries) the attack used on it and whether it succeeded, as in
      a `Record`. An example that was not broken never counts.
    xlabel: The unit of the budget.
    title: Above the axes.

  Returns:
    The figure; every line ends at the largest budget any example used.

  Raises:
    ValueError: Nothing to draw, or lengths that differ.
    TypeError: `success` is not boolean.
  """
  _check_not_empty("results", results)
  fig, ax = _percent_axes(title, xlabel, "examples broken (%)")
  last = max(int(np.max(steps, initial=1)) for steps, _ in results.values())
  ends = []
  for index, (label, (steps, success)) in enumerate(results.items()):
    x, y = _success_curve(label, np.asarray(steps), np.asarray(success), last)
    look = style.series_style(index)
    look |= {"marker": "none", "drawstyle": "steps-post"}
    ends.append(style.draw(ax, x, y, label, look))
  ax.set_xlim(0, last)
  style.label_ends(ax, ends)
  return fig


def training_curves(
  records: Sequence[Mapping[str, Any]], *, title: str = "Training"
) -> figure.Figure:
  """The losses and the accuracies of a training run against the step.

  Args:
    records: Rows of a metrics log: `step` plus any metrics. A metric with
      "loss" in its name is drawn among the losses, one with "accuracy"
      (a fraction) among the accuracies, others are left out. A row need not
      have every metric.
    title: Above the first panel.

  Returns:
    The figure, with one panel per kind that occurs.

  Raises:
    ValueError: A row lacks `step`, or there is no loss and no accuracy at all.
  """
  if any("step" not in record for record in records):
    raise ValueError("records has a row without 'step': give each row its step")
  names = list(dict.fromkeys(name for record in records for name in record))
  kinds = [
    (kind, [name for name in names if kind in name])
    for kind in ("loss", "accuracy")
  ]
  kinds = [(kind, found) for kind, found in kinds if found]
  if not kinds:
    raise ValueError(
      f"records has the metrics {names}, none with 'loss' or 'accuracy' in its "
      "name: rename one or pass other rows."
    )
  fig = style.new_figure(5.0 * len(kinds), 3.5)
  panels = fig.subplots(1, len(kinds), squeeze=False)[0]
  for index, (ax, (kind, found)) in enumerate(zip(panels, kinds, strict=True)):
    style.dress(
      ax,
      "" if index else title,
      "step",
      "accuracy (%)" if kind == "accuracy" else kind,
    )
    _training_panel(ax, kind, {n: _history(records, n) for n in found})
  return fig


def confidence_histogram(
  confidences: Mapping[str, Array],
  *,
  num_bins: int = 20,
  title: str = "Confidence on mistakes",
) -> figure.Figure:
  """How sure the model is where it is wrong, one outline per model/attack.

  Args:
    confidences: Per label the probabilities [N] in [0, 1] that the model gives
      its prediction on the examples it gets wrong. N may be 0.
    num_bins: Equal bins over [0, 1]; 20 makes them 5 % wide.
    title: Above the axes.

  Returns:
    The figure; each label carries its N.

  Raises:
    ValueError: Nothing to draw, or confidences outside [0, 1].
  """
  _check_not_empty("confidences", confidences)
  fig = style.new_figure(7.5, 4.0)
  ax = fig.subplots()
  style.dress(ax, title, "confidence (%)", "share of mistakes (%)")
  edges = np.linspace(0.0, 100.0, num_bins + 1)
  for index, (label, values) in enumerate(confidences.items()):
    found = np.asarray(values)
    percent = _percent(f"confidences[{label!r}]", found, found.shape)
    counts, _ = np.histogram(percent, edges)
    color = style.SERIES[index % len(style.SERIES)]
    name = f"{label}  (n = {found.size:,})"
    heights = 100.0 * counts / max(found.size, 1)
    ax.stairs(heights, edges, color=color, alpha=0.12, fill=True)
    ax.stairs(heights, edges, color=color, linewidth=1.8, label=name)
  ax.set_xlim(0, 100)
  ax.set_ylim(bottom=0)
  ax.legend(frameon=False, labelcolor=style.INK, fontsize=9.5, loc="upper left")
  return fig


def _check_not_empty(name: str, values: Mapping[str, Any]) -> None:
  if not values:
    raise ValueError(f"{name} is empty: pass at least one labelled series.")


def _percent(
  name: str, values: Array, shape: tuple[int, ...]
) -> npt.NDArray[np.float64]:
  """Fractions as percents, checked for shape and range."""
  out = np.asarray(values, np.float64)
  if out.shape != shape or out.ndim != 1:
    raise ValueError(
      f"{name} has shape {out.shape} where {shape} is needed: "
      "give 1-D arrays of one length."
    )
  # Stated so that NaN fails too.
  if not np.all((out >= 0.0) & (out <= 1.0)):
    raise ValueError(
      f"{name} has values in [{out.min():g}, {out.max():g}]: pass fractions "
      "in [0, 1], not percents."
    )
  return 100.0 * out


def _percent_axes(
  title: str, xlabel: str, ylabel: str
) -> tuple[figure.Figure, axes.Axes]:
  fig = style.new_figure(8.5, 4.2)
  ax = fig.subplots()
  style.dress(ax, title, xlabel, ylabel)
  ax.set_ylim(0, 100)
  return fig, ax


def _fit_x(
  ax: axes.Axes, ends: Sequence[style.End], xs: Sequence[npt.NDArray[Any]]
) -> None:
  """From the smallest to the largest value; one value gets room around it."""
  low, high = min(float(x[0]) for x in xs), max(end.x for end in ends)
  pad = 0.0 if high > low else 0.5 * abs(high) or 0.5
  ax.set_xlim(low - pad, high + pad)


def _success_curve(
  label: str, steps: npt.NDArray[Any], success: npt.NDArray[Any], last: int
) -> tuple[npt.NDArray[Any], npt.NDArray[np.float64]]:
  """The percent of examples broken after 0, ..., `last` steps, where it grows.

  Only the steps at which it grows are kept: a query attack has thousands.
  """
  if success.dtype != np.bool_:
    raise TypeError(
      f"results[{label!r}] has success of dtype {success.dtype}: pass one "
      "boolean per example."
    )
  if steps.shape != success.shape or steps.ndim != 1 or not steps.size:
    raise ValueError(
      f"results[{label!r}] has steps of shape {steps.shape} and success of "
      f"shape {success.shape}: give one of each per example, at least one."
    )
  at, counts = np.unique(steps[success], return_counts=True)
  x = np.concatenate([[0], at, [last]])
  broken = np.concatenate([[0], np.cumsum(counts), [np.sum(success)]])
  return x, 100.0 * broken / steps.size


def _history(
  records: Sequence[Mapping[str, Any]], name: str
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
  """The steps and the finite values of a metric, in the order of the steps."""
  rows = [(r["step"], r[name]) for r in records if r.get(name) is not None]
  rows = sorted((step, value) for step, value in rows if np.isfinite(value))
  steps, values = np.asarray(rows, np.float64).reshape(-1, 2).T
  return steps, values


def _training_panel(
  ax: axes.Axes,
  kind: str,
  histories: Mapping[str, tuple[npt.NDArray[Any], npt.NDArray[Any]]],
) -> None:
  """Draws one metric per line; points that are not finite are left out."""
  histories = {n: (x, y) for n, (x, y) in histories.items() if x.size}
  ends = []
  for index, (name, (x, y)) in enumerate(histories.items()):
    if kind == "accuracy":
      y = _percent(f"records {name!r}", y, x.shape)
    look = style.series_style(index) | {"marker": "none"}
    ends.append(style.draw(ax, x, y, name, look))
  if kind == "accuracy":
    ax.set_ylim(0, 100)
  elif all(np.all(y >= 0) for _, y in histories.values()):
    ax.set_ylim(bottom=0)
  if ends:
    _fit_x(ax, ends, [x for x, _ in histories.values()])
    style.label_ends(ax, ends)
