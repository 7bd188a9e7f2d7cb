"""Our attacks of each norm, as they are scored, within the budget.

An attack that aims at one class after another gets its share of steps for each.
"""

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks import radius_search
from jaxadv import attacks, balls, criteria, losses, norms, types

Attack = types.Attack
AttackFn = Callable[[], Attack]

# Classes among which MALT orders.
_CANDIDATES = 9
# Where searches begin that go downwards, for an attempt that wins ends early
# and one that fails does not: the largest radii of adv-lib's search.
_HIGH = {"linf": 0.5, "l2": 10.0, "l1": 50.0}
# What a step by one gradient costs, and so how many fit.
PASSES = 2
_PAIR: dict[str, Any] = {
  "loss_fn": losses.difference,
  "criterion": criteria.misclassified_pair,
}


def _linf_apgd(eps) -> Attack:
  return attacks.auto_pgd(balls.Linf(eps), num_steps=100)


def _linf_apgd_t(eps) -> Attack:
  return _aimed(attacks.auto_pgd(balls.Linf(eps), num_steps=30, **_DLR))


def _linf_pgd(eps) -> Attack:
  ball = balls.Linf(eps)
  return attacks.pgd(ball, num_steps=40, step_size=eps * (0.01 / 0.3))


def _l2_apgd(eps) -> Attack:
  return attacks.auto_pgd(balls.L2(eps), num_steps=100)


def _l2_apgd_t(eps) -> Attack:
  return _aimed(attacks.auto_pgd(balls.L2(eps), num_steps=30, **_DLR))


def _l1_apgd(eps) -> Attack:
  return attacks.auto_pgd_l1(eps, num_steps=100)


def _l1_apgd_t(eps) -> Attack:
  return _aimed(attacks.auto_pgd_l1(eps, num_steps=30, **_DLR))


_DLR: dict[str, Any] = {
  "loss_fn": losses.targeted_dlr,
  "criterion": criteria.misclassified_pair,
}


def _aimed(attack: Attack) -> Attack:
  return attacks.multi_targeted(attack, 3)


def _fmn_t(norm: norms.Norm, steps: int, order=3) -> Attack:
  attack = attacks.fmn(norm, num_steps=steps // 3 - 1, **_PAIR)
  return attacks.multi_targeted(attack, order, size_fn=norm)


def _fmn_malt(norm: norms.Norm, steps: int) -> Attack:
  # The Jacobian at the clean input costs as much as some steps.
  order = attacks.NearestTargets(3, norm, num_candidates=_CANDIDATES)
  return _fmn_t(norm, steps - _CANDIDATES, order)


def _search(attack_fn, norm, first: float, largest: float, steps: int):
  return lambda: radius_search.least_radius(
    attack_fn, norm, first=first, largest=largest, num_steps=steps
  )


def _plan(steps: int) -> attacks.binary_search.Plan:
  return attacks.binary_search.Plan(9, steps // 9, abort_early=False)


def of_norm(norm: str, size: int, budget: int) -> Mapping[str, AttackFn]:
  """Our attacks that minimise a norm, by name.

  Args:
    norm: "linf", "l2", "l1" or "l0".
    size: Coordinates of an input in [0, 1], for the largest radius.
    budget: Forward and backward passes per example.
  """
  steps = budget // PASSES
  return {"linf": _linf, "l2": _l2, "l1": _l1, "l0": _l0}[norm](size, steps)


def _linf(size: int, steps: int) -> Mapping[str, AttackFn]:
  del size
  norm, first = norms.Linf, 1 / 255
  return {
    "fmn": lambda: attacks.fmn(norm, num_steps=steps),
    "fmn-t": lambda: _fmn_t(norm, steps),
    "fmn-malt": lambda: _fmn_malt(norm, steps),
    "pdpgd": lambda: attacks.pdpgd(norm, num_steps=steps),
    "apgd": _search(_linf_apgd, norm, _HIGH["linf"], 1.0, steps),
    "apgd-t": _search(_linf_apgd_t, norm, _HIGH["linf"], 1.0, steps),
    "pgd": _search(_linf_pgd, norm, first, 1.0, steps),
    "fab": lambda: attacks.fab(norm, num_restarts=10),
    "fab-t": lambda: attacks.fab_t(norm, num_steps=steps // 9),
    "deepfool": lambda: attacks.deepfool(norm),
    "brendel-bethge": lambda: attacks.brendel_bethge(norm, num_steps=steps),
  }


def _l2(size: int, steps: int) -> Mapping[str, AttackFn]:
  norm, largest = norms.L2, size**0.5
  return {
    "ddn": lambda: attacks.ddn(num_steps=steps),
    "fmn": lambda: attacks.fmn(norm, num_steps=steps),
    "fmn-t": lambda: _fmn_t(norm, steps),
    "fmn-malt": lambda: _fmn_malt(norm, steps),
    "alma": lambda: attacks.alma(norm, num_steps=steps),
    # As AttackBench runs it.
    "alma-1": lambda: attacks.alma(norm, num_steps=steps, first_distance=1.0),
    "pdpgd": lambda: attacks.pdpgd(norm, num_steps=steps),
    "apgd": _search(_l2_apgd, norm, _HIGH["l2"], largest, steps),
    "apgd-t": _search(_l2_apgd_t, norm, _HIGH["l2"], largest, steps),
    "carlini-wagner": lambda: attacks.carlini_wagner(plan=_plan(steps)),
    "fab": lambda: attacks.fab(norm, num_restarts=10),
    "fab-t": lambda: attacks.fab_t(norm, num_steps=steps // 9),
    "deepfool": lambda: attacks.deepfool(norm),
    "brendel-bethge": lambda: attacks.brendel_bethge(norm, num_steps=steps),
  }


def _l1(size: int, steps: int) -> Mapping[str, AttackFn]:
  norm, largest = norms.L1, float(size)
  return {
    "fmn": lambda: attacks.fmn(norm, num_steps=steps),
    "fmn-t": lambda: _fmn_t(norm, steps),
    "fmn-malt": lambda: _fmn_malt(norm, steps),
    "alma": lambda: attacks.alma(norm, num_steps=steps),
    "pdpgd": lambda: attacks.pdpgd(norm, num_steps=steps),
    "apgd": _search(_l1_apgd, norm, _HIGH["l1"], largest, steps),
    "apgd-t": _search(_l1_apgd_t, norm, _HIGH["l1"], largest, steps),
    "ead": lambda: attacks.elastic_net(plan=_plan(steps)),
    "fab": lambda: attacks.fab(norm, num_restarts=10),
    "fab-t": lambda: attacks.fab_t(norm, num_steps=steps // 9),
    "deepfool": lambda: attacks.deepfool(norm),
  }


def _l0(size: int, steps: int) -> Mapping[str, AttackFn]:
  del size
  return {
    "sigma-zero": lambda: attacks.sigma_zero(num_steps=steps),
    "fmn": lambda: attacks.fmn_l0(num_steps=steps),
    "pdpgd": lambda: attacks.pdpgd_l0(num_steps=steps),
  }
