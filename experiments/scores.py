"""What an assessment amounts to: numbers for a file, tables for people."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import stats

from experiments import assessment, attack_table, remarks
from jaxadv import evaluation
from jaxadv.report import tables

Numbers = dict[str, Any]
Reach = attack_table.Reach

# The quantiles of minimum-norm attacks' distances.
_SHARES = (0.25, 0.5, 0.75)

_ACCURACY = (
  "accuracy: right at the clean input and under the attack, of all examples."
)
_SUCCESS = (
  "success: the attack's own aim reached, of those right at the clean input."
)
_COST = (
  "±: half the 95 % Wilson interval. steps: the mean, distance: the median of "
  "the successes, both of those right at the clean input. alone: accuracy that "
  "no other attack takes. seconds include compilation."
)


def interval(rate: float, n: int) -> list[float]:
  """The Wilson interval of 95 % for a rate among `n` examples."""
  low, high = stats.binomtest(round(rate * n), n).proportion_ci(
    0.95, method="wilson"
  )
  return [float(low), float(high)]


def numbers(outcome: assessment.Outcome, norm: str) -> Numbers:
  """All that `results.json` says; rates are fractions, NaN becomes None.

  The worst case is that of the attacks under the threat model alone, and None
  where there was none.
  """
  wrong, plan = outcome.clean_wrong, outcome.plan
  bounded = {
    name: attacked.fooled
    for name, attacked in outcome.attacked.items()
    if attack_table.reach(name) is not Reach.ANYWHERE
  }
  total = evaluation.summary(wrong, bounded.values())
  drops = evaluation.marginal_drops(wrong, bounded)
  n = total.num_examples
  robust = total.robust_accuracy if bounded else None
  return {
    "model": outcome.victim.name,
    "dataset": outcome.victim.dataset,
    "split": outcome.victim.split,
    "num_examples": n,
    "norm": norm,
    "eps": plan.eps,
    "clean_accuracy": total.clean_accuracy,
    "clean_interval": interval(total.clean_accuracy, n),
    "robust_accuracy": robust,
    "robust_interval": None if robust is None else interval(robust, n),
    "success_rate": _finite(total.success_rate) if bounded else None,
    "attacks": {
      name: _attack_numbers(outcome, name, norm)
      | {"marginal_drop": drops.get(name)}
      for name in outcome.attacked
    },
    "curve": {
      "attack": "pgd",
      "radii": list(plan.radii),
      "accuracy": outcome.curve.tolist(),
      "interval": [interval(rate, n) for rate in outcome.curve],
    },
  }


def _attack_numbers(
  outcome: assessment.Outcome, name: str, norm: str
) -> Numbers:
  attacked = outcome.attacked[name]
  record, right = attacked.record, ~outcome.clean_wrong
  robust = interval_ = None
  if attack_table.reach(name) is not Reach.ANYWHERE:
    robust = float((right & ~attacked.fooled).mean())
    interval_ = interval(robust, len(right))
  won = right & attacked.success
  return {
    "robust_accuracy": robust,
    "robust_interval": interval_,
    "success_rate": _mean(attacked.success[right]),
    "fooled_rate": _mean(attacked.fooled[right]),
    "mean_steps": _mean(record.steps[right]),
    "forwards": int(record.forwards.sum()),
    "backwards": int(record.backwards.sum()),
    "median_distance": {
      other: _finite(np.median(values[won])) if won.any() else None
      for other, values in record.distance.items()
    },
    "num_outside": attacked.num_outside,
    "seconds": attacked.seconds,
  } | _particulars(outcome, name, norm)


def _particulars(outcome: assessment.Outcome, name: str, norm: str) -> Numbers:
  """What only cascades, or only minimum-norm attacks, have to say."""
  attacked, right = outcome.attacked[name], ~outcome.clean_wrong
  if attacked.stages:
    return {
      "stages": dict(attacked.stages),
      "suspicions": list(attacked.suspicions),
    }
  if attack_table.reach(name) is not Reach.NEAREST or not right.any():
    return {}
  distances = nearest(outcome, name, norm)[right]
  quantiles = {
    share: evaluation.distance_quantile(distances, share) for share in _SHARES
  }
  return {
    "distance_quantiles": {
      f"{share:g}": {
        part: _finite(value) for part, value in quantile._asdict().items()
      }
      for share, quantile in quantiles.items()
    }
  }


def nearest(outcome: assessment.Outcome, name: str, norm: str) -> np.ndarray:
  """How far a minimum-norm attack had to go for each example [N]."""
  attacked = outcome.attacked[name]
  return evaluation.minimum_distances(
    outcome.clean_wrong, attacked.success, attacked.record.distance[norm]
  )


def _mean(values: np.ndarray) -> float | None:
  return float(values.mean()) if len(values) else None


def _finite(value: float) -> float | None:
  return float(value) if np.isfinite(value) else None


def threat(found: Numbers) -> str:
  """What the model was exposed to, in one line."""
  return (
    f"{found['num_examples']} {found['split']} images of {found['dataset']}, "
    f"{found['norm']} radius {found['eps']:.4g}"
  )


def table(found: Numbers) -> tables.Table:
  """One model: a row for the clean input, each attack and the worst case."""
  rows = [
    [
      name,
      _plus_minus(row["accuracy"], row["interval"]),
      remarks.percent(row["success"]),
      row["steps"],
      row["distance"],
      remarks.percent(row["alone"]),
      row["seconds"],
    ]
    for name, row in _rows(found).items()
  ]
  alone = {found["model"]: found}
  distance = f"{found['norm']} distance"
  return tables.Table(
    f"{found['model']}: {threat(found)}",
    ["attack", "accuracy", "success", "steps", distance, "alone", "seconds"],
    rows,
    note=f"{_ACCURACY} {_SUCCESS} {_COST} {remarks.of(alone)}".strip(),
    formats={"steps": ".1f", distance: ".3f", "seconds": ".1f"},
  )


def comparison(found: Mapping[str, Numbers]) -> tables.Table:
  """Several models side by side, under the same attacks."""
  rows = {model: _rows(each) for model, each in found.items()}
  attacks = next(iter(rows.values()))
  cells = [
    [
      name,
      *(remarks.percent(each[name]["accuracy"]) for each in rows.values()),
      *(remarks.percent(each[name]["success"]) for each in rows.values()),
    ]
    for name in attacks
  ]
  return tables.Table(
    threat(next(iter(found.values()))),
    [
      "attack",
      *(f"{model} accuracy" for model in found),
      *(f"{model} success" for model in found),
    ],
    cells,
    note=f"{_ACCURACY} {_SUCCESS} {remarks.of(found)}".strip(),
  )


def _rows(found: Numbers) -> dict[str, dict[str, Any]]:
  """The rows of a table: the clean input, each attack, the worst case."""
  empty = dict.fromkeys(
    ("accuracy", "interval", "success", "steps", "distance", "alone", "seconds")
  )
  rows = {
    "none": empty
    | {
      "accuracy": found["clean_accuracy"],
      "interval": found["clean_interval"],
    }
  }
  for name, attack in found["attacks"].items():
    rows[name] = {
      "accuracy": attack["robust_accuracy"],
      "interval": attack["robust_interval"],
      "success": attack["success_rate"],
      "steps": attack["mean_steps"],
      "distance": attack["median_distance"][found["norm"]],
      "alone": attack["marginal_drop"],
      "seconds": attack["seconds"],
    }
  rows["worst case"] = empty | {
    "accuracy": found["robust_accuracy"],
    "interval": found["robust_interval"],
    "success": found["success_rate"],
  }
  return rows


def _plus_minus(rate: float | None, interval: list[float]) -> str | None:
  if rate is None:
    return None
  return f"{100 * rate:.1f} ± {50 * (interval[1] - interval[0]):.1f} %"
