"""AutoAttack: the ensembles of Croce and Hein, as tables of attacks.

  attacks_ = autoattack.standard(balls.Linf(0.3), num_classes=10)
  result = cascade.cascade(attacks_, logits_fn, key, images, labels)

Each version is an ordered `dict` of attacks for `cascade.cascade`, so attacks
are left out, added or replaced as in any dictionary. Settings are those of the
authors' code: 100 steps, rho 0.75, alpha_max 0.1, eta 1.05, beta 0.9, 5,000
queries with p_init 0.8. Targets are at most all the wrong classes, and the DLR
losses have forms for two and three classes (see `losses`), so models of two
classes are attacked too.

Reference: Croce, Hein, "Reliable evaluation of adversarial robustness with an
ensemble of diverse parameter-free attacks", 2020; for L1 "Mind the box: l1-APGD
for sparse adversarial attacks on image classifiers", 2021.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

from jaxadv import attacks, balls, criteria, losses, norms, types
from jaxadv.attacks import square

Table = dict[str, types.Attack]
Bounds = tuple[types.Scalar, types.Scalar]

# Restarts in `plus`, and draws in `rand`, whatever the ball.
_PLUS_RESTARTS = 5
_DRAWS = 20


class _Variant(NamedTuple):
  """What the ball decides."""

  norm: norms.Norm
  ascent: Callable[..., types.Attack]  # Auto-PGD without its loss.
  num_restarts: int  # Of APGD-CE in `standard`.
  num_targets: int  # Of APGD-T in `standard`.


@functools.singledispatch
def _variant(ball: types.Ball) -> _Variant:
  raise TypeError(
    f"AutoAttack is for balls.Linf, L2 and L1, got ball={ball!r}: for others "
    "make a table of attacks for cascade.cascade"
  )


@_variant.register
def _(ball: balls.Linf) -> _Variant:
  ascent = functools.partial(attacks.auto_pgd, ball)
  return _Variant(norms.Linf, ascent, num_restarts=1, num_targets=9)


@_variant.register
def _(ball: balls.L2) -> _Variant:
  ascent = functools.partial(attacks.auto_pgd, ball)
  return _Variant(norms.L2, ascent, num_restarts=1, num_targets=9)


@_variant.register
def _(ball: balls.L1) -> _Variant:
  ascent = functools.partial(attacks.auto_pgd_l1, ball.eps)
  return _Variant(norms.L1, ascent, num_restarts=5, num_targets=5)


def standard(
  ball: types.Ball, num_classes: int, *, bounds: Bounds = (0.0, 1.0)
) -> Table:
  """APGD-CE, APGD-T, FAB-T and Square, the version of the leaderboards.

  APGD-CE has 1 restart and APGD-T 9 targets; in L1 5 restarts and 5 targets,
  from larger radii inwards. FAB-T has 9 targets.

  Args:
    ball: `balls.Linf`, `balls.L2` or `balls.L1`.
    num_classes: Classes of the model, at least 2.
    bounds: The range of inputs.

  Raises:
    TypeError: another ball.
    ValueError: fewer than two classes.
  """
  variant = _variant(ball)
  return {
    "apgd_ce": _ascent(
      variant, losses.cross_entropy, variant.num_restarts, bounds
    ),
    "apgd_t": _targeted_ascent(
      variant, _targets(variant.num_targets, num_classes), bounds
    ),
    "fab_t": _targeted_fab(variant, ball, num_classes, bounds),
    "square": square(ball, bounds=bounds),
  }


def plus(
  ball: types.Ball, num_classes: int, *, bounds: Bounds = (0.0, 1.0)
) -> Table:
  """`standard` with APGD-DLR and untargeted FAB, and 5 restarts.

  APGD-CE, APGD-DLR and FAB have 5 restarts; APGD-T and FAB-T 9 targets. In L1,
  which the authors advise against here, their Auto-PGD keeps to the ball from
  the start; this one comes from larger radii as in `standard`.

  Arguments and errors as in `standard`.
  """
  variant = _variant(ball)
  return {
    "apgd_ce": _ascent(variant, losses.cross_entropy, _PLUS_RESTARTS, bounds),
    "apgd_dlr": _ascent(variant, losses.dlr, _PLUS_RESTARTS, bounds),
    "fab": attacks.fab(
      variant.norm,
      num_candidates=num_classes,
      num_restarts=_PLUS_RESTARTS,
      eps=ball.eps,
      bounds=bounds,
    ),
    "square": square(ball, bounds=bounds),
    "apgd_t": _targeted_ascent(variant, _targets(9, num_classes), bounds),
    "fab_t": _targeted_fab(variant, ball, num_classes, bounds),
  }


def rand(ball: types.Ball, *, bounds: Bounds = (0.0, 1.0)) -> Table:
  """For randomised models: APGD-CE and APGD-DLR on means of 20 draws.

  Judge the results by several draws, too (`num_draws` of `cascade.cascade`):
  the authors' code asks once, and a lucky draw counts as a success. In L1 as
  in `plus`. Arguments and errors as in `standard`.
  """
  variant = _variant(ball)
  return {
    name: attacks.eot(_ascent(variant, loss_fn, 1, bounds), _DRAWS)
    for name, loss_fn in (
      ("apgd_ce", losses.cross_entropy),
      ("apgd_dlr", losses.dlr),
    )
  }


def _targets(num_targets: int, num_classes: int) -> int:
  if num_classes < 2:
    raise ValueError(f"num_classes must be at least 2, got {num_classes}")
  return min(num_targets, num_classes - 1)


def _ascent(variant, loss_fn, num_restarts, bounds) -> types.Attack:
  attack = variant.ascent(loss_fn=loss_fn, bounds=bounds)
  if num_restarts == 1:
    return attack
  return attacks.restarts(attack, num_restarts)


def _targeted_ascent(variant, num_targets, bounds) -> types.Attack:
  attack = variant.ascent(
    loss_fn=losses.targeted_dlr,
    criterion=criteria.misclassified_pair,
    bounds=bounds,
  )
  return attacks.multi_targeted(attack, num_targets)


def _targeted_fab(variant, ball, num_classes, bounds) -> types.Attack:
  return attacks.fab_t(
    variant.norm,
    num_targets=_targets(9, num_classes),
    eps=ball.eps,
    bounds=bounds,
  )
