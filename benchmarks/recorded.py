"""Runs that other libraries recorded, with our attacks of the same settings.

A run with a fixed budget is scored by robust accuracy, of all examples; a
minimum-norm run by the median distance of the examples that the network has
right, where a failed search counts as infinite.
"""

import functools
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxadv import (
  attacks,
  balls,
  criteria,
  engine,
  evaluation,
  losses,
  norms,
  types,
)

# What ours may be worse by, and still agree.
ACCURACY_SLACK = 0.006
CASCADE_SLACK = 0.002
DISTANCE_FACTOR = 1.02

Attack = types.Attack


class Run(NamedTuple):
  """One recorded run.

  Attributes:
    attack_fn: Makes our attack with the settings of the record.
    undefended: Whether it is run on an undefended network, too.
    ball: The threat model of a fixed budget; None for minimum norm.
    norm: The distance that minimum-norm attacks make small.
  """

  attack_fn: Callable[[], Attack]
  undefended: bool = True
  ball: Any = None
  norm: str = ""


def _fixed(ball, norm, ascent: Callable[..., Attack]) -> dict[str, Run]:
  """AutoAttack's four, each alone; its APGD-CE was run with 5 restarts."""

  def targeted() -> Attack:
    attack = ascent(
      loss_fn=losses.targeted_dlr, criterion=criteria.misclassified_pair
    )
    return attacks.multi_targeted(attack, 9)

  return {
    "apgd-ce": Run(lambda: attacks.restarts(ascent(), 5), ball=ball),
    "apgd-t": Run(targeted, False, ball),
    "fab-t": Run(lambda: attacks.fab_t(norm, eps=ball.eps), False, ball),
    "square": Run(lambda: attacks.square(ball), False, ball),
  }


def _threats() -> dict[str, tuple[Any, norms.Norm, Callable[..., Attack]]]:
  linf, l2, l1 = balls.Linf(0.3), balls.L2(2.0), balls.L1(10.0)
  return {
    "Linf-0.3": (linf, norms.Linf, functools.partial(attacks.auto_pgd, linf)),
    "L2-2.0": (l2, norms.L2, functools.partial(attacks.auto_pgd, l2)),
    "L1-10.0": (l1, norms.L1, functools.partial(attacks.auto_pgd_l1, l1.eps)),
  }


# Threat models of the runs with a fixed budget: ball, norm, Auto-PGD in it.
THREATS = _threats()


def _fixed_budgets() -> dict[str, Run]:
  return {
    f"autoattack-{threat}-{attack}": run
    for threat, parts in THREATS.items()
    for attack, run in _fixed(*parts).items()
  }


def _fmn(norm: norms.Norm) -> Callable[[], Attack]:
  return lambda: attacks.fmn(norm, num_steps=1000)


def _carlini_wagner() -> Attack:
  plan = attacks.binary_search.Plan(9, 1000, abort_early=False)
  return attacks.carlini_wagner(plan=plan)


RUNS: Mapping[str, Run] = _fixed_budgets() | {
  "deepfool-l2": Run(lambda: attacks.deepfool(norms.L2), norm="l2"),
  "deepfool-linf": Run(lambda: attacks.deepfool(norms.Linf), norm="linf"),
  "ddn-1000": Run(lambda: attacks.ddn(num_steps=1000), norm="l2"),
  "fmn-l2-1000": Run(_fmn(norms.L2), norm="l2"),
  "fmn-linf-1000": Run(_fmn(norms.Linf), norm="linf"),
  "fmn-l1-1000": Run(_fmn(norms.L1), norm="l1"),
  "fmn-l0-1000": Run(lambda: attacks.fmn_l0(num_steps=1000), norm="l0"),
  "alma-l2-1000": Run(lambda: attacks.alma(norms.L2), norm="l2"),
  "cw-l2-9x1000": Run(_carlini_wagner, norm="l2"),
}


def broken(run: Run, x: np.ndarray, record: engine.Record) -> np.ndarray:
  """Whether each example is misclassified, within the run's ball if any [N]."""
  if run.ball is None:
    return record.success
  return record.success & evaluation.inside(run.ball, x, record.x_adv)


def score(
  run: Run, right: np.ndarray, success: np.ndarray, distance: np.ndarray
) -> float:
  """Robust accuracy, or the median distance of the examples that were right.

  Args:
    run: Decides which.
    right: Whether the clean input is classified as labelled [N].
    success: Whether the run's result is misclassified [N].
    distance: Of the result, in the run's norm [N].
  """
  if run.ball is not None:
    return float(1.0 - success.mean())
  return float(np.median(np.where(success, distance, np.inf)[right]))


def agrees(run: Run, ours: float, theirs: float) -> bool:
  """Whether our score is as good as the recorded one, but for the slack."""
  if run.ball is not None:
    return ours <= theirs + ACCURACY_SLACK
  return ours <= theirs * DISTANCE_FACTOR


def columns(path: str | os.PathLike, prefix: str) -> dict[str, np.ndarray]:
  """What a file holds of a network ("adv") or a run ("adv/ddn-1000")."""
  with np.load(path) as file:
    return {
      path.removeprefix(f"{prefix}/"): file[path]
      for path in file.files
      if path.rpartition("/")[0] == prefix
    }
