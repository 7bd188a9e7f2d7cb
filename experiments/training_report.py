"""The page about one training: curves, and the best weights beside the last."""

import pathlib
import statistics
from typing import Any

from experiments import checkpoints, common, validation
from jaxadv import data
from jaxadv.report import curves, page, tables


def results(
  exam: validation.Exam,
  end: checkpoints.Snapshot,
  test: data.Examples,
  num_attacked: int,
  num_epochs: int,
) -> dict[str, Any]:
  """What results.json says: the best and the last weights, on the test set."""
  found = {
    "defence": exam.plan.name,
    "steps": int(end.state.step),
    "epochs": num_epochs,
    "seconds": round(end.meta["seconds"], 1),
    # Without validation; the median, for the first compiles.
    "seconds_per_epoch": statistics.median(end.meta["epoch_seconds"]),
    "best_step": end.meta["best_step"],
    "test_images_attacked": min(num_attacked, len(test.labels)),
  }
  for which, variables in (
    ("best", end.best),
    ("last", end.state.eval_variables),
  ):
    row = validation.marks(exam, variables, test, num_attacked)
    found |= {f"{which}_test_{name}": row[name] for name in row}
  return found


def write(workdir: pathlib.Path, results: dict[str, Any]) -> None:
  """Writes `report.html` from metrics.jsonl and the results."""
  figure = curves.training_curves(common.read_metrics(workdir))
  names = [
    name.removeprefix("last_test_")
    for name in results
    if name.startswith("last_test_")
  ]
  table = tables.Table(
    f"{results['test_images_attacked']} test images attacked",
    ["weights", *(name.replace("_", " ") for name in names)],
    [
      [which, *(results[f"{which}_test_{name}"] for name in names)]
      for which in ("best", "last")
    ],
    formats={name.replace("_", " "): ".1%" for name in names},
  )
  sections = [
    page.Section(
      "Training",
      "A gap between training and validation under attack that widens is "
      "robust overfitting; a sudden fall of the latter is catastrophic "
      "overfitting.",
      [figure],
    ),
    page.Section(
      "Best and last weights",
      "The best by validation under attack, never by the test set.",
      [table],
    ),
  ]
  page.write(
    workdir / "report.html",
    f"Training: {results['defence']}",
    sections,
    subtitle=f"{results['steps']} steps in {results['seconds']:.0f} s",
  )
