"""The attacks that `--attacks` can name: name -> how it is made and aimed."""

import enum
import functools
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import aims
from jaxadv import attacks, autoattack, balls, criteria, losses, norms, types

Array = jax.Array


class Settings(NamedTuple):
  """What the flags say about the attacks under a radius.

  Attributes:
    num_steps: Gradients of an iterative attack, per round; None for 40, and
      for what minimum-norm attacks have as their default.
    step_size: Length of a step in units of eps; None leaves it to the attack:
      2.5 / num_steps as in the L2 attacks of Madry et al. (2018), so that steps
      can cross the ball, or 1 / num_steps for the momentum attacks, as in their
      papers.
    num_restarts: Rounds of `pgd_restarts`.
    num_classes: Classes of the model.
    loss_fn: What attacks that maximise cross-entropy maximise instead, for a
      model of another output, such as one with a null class.
    criterion: What counts as fooled: rejecting an input may not.
  """

  num_steps: int | None
  step_size: float | None
  num_restarts: int
  num_classes: int
  loss_fn: types.LossFn = losses.cross_entropy
  criterion: types.Criterion = criteria.misclassified


class Reach(enum.Enum):
  """What an attack makes of the radius, and so of the worst case."""

  BALL = "keeps to the ball: all its successes count"
  NEAREST = "looks for the nearest: successes count where they are in the ball"
  ANYWHERE = "knows no radius: no part of the worst case"


class Entry(NamedTuple):
  """A row of the table.

  Attributes:
    make: Makes the attack of a ball.
    aim: What it is given (`aims`).
    criterion: Success, of that `y`, of an attack that spends its whole budget,
      where that is not what fools the model; others say it themselves.
    reach: What it makes of the radius.
    balls: The threat models that it is for.
    any_criterion: Whether it serves for models that are fooled by other things
      than misclassification: it goes on until they are.
  """

  make: Callable[[types.Ball, Settings], types.Attack]
  aim: Callable[[Array, Array, Array], types.PyTree] = aims.labels
  criterion: types.Criterion | None = None
  reach: Reach = Reach.BALL
  balls: tuple[type, ...] = (balls.Linf, balls.L2, balls.L1)
  any_criterion: bool = False


def _num_steps(settings: Settings) -> int:
  return settings.num_steps or 40


def _num_targets(settings: Settings) -> int:
  """As in AutoAttack."""
  return min(9, settings.num_classes - 1)


def _steps(ball: types.Ball, settings: Settings) -> dict:
  relative = settings.step_size
  if relative is None:
    relative = 2.5 / _num_steps(settings)
  return {"num_steps": _num_steps(settings), "step_size": relative * ball.eps}


def _until_fooled(settings: Settings) -> dict:
  return {"loss_fn": settings.loss_fn, "criterion": settings.criterion}


def _momentum_steps(ball: types.Ball, settings: Settings) -> dict:
  if settings.step_size is None:
    return {"num_steps": _num_steps(settings)}
  return _steps(ball, settings)


def _targeted_pgd(ball: types.Ball, settings: Settings) -> types.Attack:
  return attacks.pgd(
    ball,
    loss_fn=losses.targeted_cross_entropy,
    criterion=criteria.classified_as,
    **_steps(ball, settings),
  )


def _multi_targeted_pgd(ball: types.Ball, settings: Settings) -> types.Attack:
  attack = attacks.pgd(
    ball,
    loss_fn=losses.targeted_dlr,
    criterion=criteria.misclassified_pair,
    **_steps(ball, settings),
  )
  return attacks.multi_targeted(attack, _num_targets(settings))


def _goal_image(ball: types.Ball, settings: Settings) -> types.Attack:
  """From noise to an image like the clean one, read as the goal.

  Cross-entropy in place of the squared error, whose gradient vanishes where the
  model is sure. The whole budget is spent, or the result would still be noise;
  it has its own, for its steps are no fractions of eps: with the weight of 0.05
  the pull brings a pixel to within 5 % in 300 steps of 0.1.
  """
  del ball, settings
  return attacks.goal_image(
    num_steps=300,
    learning_rate=0.1,
    loss_fn=losses.targeted_cross_entropy,
    criterion=criteria.never,
  )


def _of_autoattack(name: str) -> Entry:
  """One of AutoAttack's, with its settings, alone."""
  return Entry(lambda ball, s: autoattack.standard(ball, s.num_classes)[name])


_NORMS: dict[type, norms.Norm] = {
  balls.Linf: norms.Linf,
  balls.L2: norms.L2,
  balls.L1: norms.L1,
}


def _nearest(make: Callable[..., types.Attack], ball: type) -> Entry:
  """A minimum-norm attack of one norm."""
  return _nearest_of(lambda norm, **steps: make(**steps), ball)


def _nearest_of(make: Callable[..., types.Attack], *of_balls: type) -> Entry:
  """A minimum-norm attack that is told the norm; of any, if none is named."""

  def built(ball: types.Ball, settings: Settings) -> types.Attack:
    steps = settings.num_steps
    chosen = {} if steps is None else {"num_steps": steps}
    return make(_NORMS[type(ball)], **chosen)

  return Entry(built, reach=Reach.NEAREST, balls=of_balls or tuple(_NORMS))


def _fab_t(ball: types.Ball, settings: Settings) -> types.Attack:
  """On to the nearest; in AutoAttack it stops where it is inside the ball."""
  targeted = functools.partial(
    attacks.fab_t, num_targets=_num_targets(settings)
  )
  return _nearest_of(targeted).make(ball, settings)


def _searched(make: Callable[..., types.Attack]) -> Callable:
  """One that searches for a constant: 9 times, of 1,000 steps by default."""

  def built(num_steps: int = 1000) -> types.Attack:
    plan = attacks.binary_search.Plan(num_searches=9, num_steps=num_steps)
    return make(plan=plan)

  return built


def _ranking(settings: Settings) -> types.LossFn:
  """Ranks the rounds of restarts; the margin knows no null class."""
  usual = settings.criterion is criteria.misclassified
  return losses.margin if usual else settings.loss_fn


def pgd(ball: types.Ball, settings: Settings) -> types.Attack:
  """PGD, which the robustness curve uses too."""
  return attacks.pgd(ball, **_steps(ball, settings), **_until_fooled(settings))


# Attacks by gradients that go on until the model is fooled, whatever that is.
_until = functools.partial(Entry, any_criterion=True)

ATTACKS: dict[str, Entry] = {
  "fgsm": _until(lambda ball, s: attacks.fgsm(ball, **_until_fooled(s))),
  "r_fgsm": _until(lambda ball, s: attacks.r_fgsm(ball, **_until_fooled(s))),
  "bim": _until(
    lambda ball, s: attacks.basic_iterative(
      ball, **_steps(ball, s), **_until_fooled(s)
    )
  ),
  "pgd": _until(pgd),
  # The whole budget, for examples that are to fool other models too.
  "pgd_full": _until(
    lambda ball, s: attacks.pgd(
      ball, loss_fn=s.loss_fn, criterion=criteria.never, **_steps(ball, s)
    )
  ),
  "pgd_margin": Entry(
    lambda ball, s: attacks.pgd(ball, loss_fn=losses.margin, **_steps(ball, s))
  ),
  "pgd_restarts": _until(
    lambda ball, s: attacks.restarts(
      pgd(ball, s), s.num_restarts, loss_fn=_ranking(s)
    )
  ),
  "mi_fgsm": _until(
    lambda ball, s: attacks.mi_fgsm(
      ball, **_momentum_steps(ball, s), **_until_fooled(s)
    )
  ),
  "ni_fgsm": _until(
    lambda ball, s: attacks.ni_fgsm(
      ball, **_momentum_steps(ball, s), **_until_fooled(s)
    )
  ),
  "adam_pgd": _until(
    lambda ball, s: attacks.adam_pgd(
      ball, num_steps=_num_steps(s), **_until_fooled(s)
    )
  ),
  # A target that is reached fools any model.
  "targeted_pgd": _until(_targeted_pgd, aims.random_targets),
  "least_likely_pgd": _until(_targeted_pgd, aims.least_likely),
  "multi_targeted_pgd": Entry(_multi_targeted_pgd),
  "apgd_ce": _of_autoattack("apgd_ce"),
  "apgd_t": _of_autoattack("apgd_t"),
  "fab_t": Entry(_fab_t, reach=Reach.NEAREST),
  "square": _of_autoattack("square"),
  "deepfool": _nearest_of(attacks.deepfool),
  "fmn": _nearest_of(attacks.fmn),
  "pdpgd": _nearest_of(attacks.pdpgd),
  "ddn": _nearest(attacks.ddn, balls.L2),
  "alma": _nearest(functools.partial(attacks.alma, norms.L2), balls.L2),
  "brendel_bethge": _nearest_of(attacks.brendel_bethge, balls.Linf, balls.L2),
  "carlini_wagner": _nearest(_searched(attacks.carlini_wagner), balls.L2),
  "elastic_net": _nearest(
    _searched(functools.partial(attacks.elastic_net, rule=attacks.least_l1)),
    balls.L1,
  ),
  "goal_image": _until(
    _goal_image, aims.random_goals, criteria.resembles, Reach.ANYWHERE
  ),
}

# Tables of attacks for `cascade.cascade`: each attacks what those before it
# left.
CASCADES: dict[
  str, Callable[[types.Ball, Settings], Mapping[str, types.Attack]]
] = {
  "autoattack": lambda ball, s: autoattack.standard(ball, s.num_classes),
  "autoattack_plus": lambda ball, s: autoattack.plus(ball, s.num_classes),
  "autoattack_rand": lambda ball, s: autoattack.rand(ball),
}

NAMES = (*ATTACKS, *CASCADES)


def reach(name: str) -> Reach:
  """What the attack or cascade of that name makes of the radius."""
  return Reach.BALL if name in CASCADES else ATTACKS[name].reach


def check(names: Sequence[str], ball: Any = None) -> None:
  """Refuses an empty list, repetitions, and attacks that are not to be had.

  Args:
    names: Of attacks and cascades.
    ball: The threat model, such as `balls.Linf`; None for any.
  """
  unknown = [name for name in names if name not in NAMES]
  if unknown or not names or len(set(names)) < len(names):
    problem = "name each once"
    if unknown:
      problem = f"no attack {', '.join(map(repr, unknown))}"
    raise ValueError(
      f"attacks={','.join(names)}: {problem}; choose from {', '.join(NAMES)}"
    )
  for name in names:
    if ball and name in ATTACKS and ball not in ATTACKS[name].balls:
      fit = ", ".join(each.__name__ for each in ATTACKS[name].balls)
      raise ValueError(
        f"attacks={','.join(names)}: {name} is for {fit} only: leave it out "
        "or choose another norm"
      )


def check_criterion(names: Sequence[str], criterion: types.Criterion) -> None:
  """Refuses attacks that stop before such a model is fooled.

  Raises:
    ValueError: there are such.
  """
  if criterion is criteria.misclassified:
    return
  early = [
    name
    for name in names
    if name in CASCADES or not ATTACKS[name].any_criterion
  ]
  if early:
    fit = ", ".join(n for n, entry in ATTACKS.items() if entry.any_criterion)
    raise ValueError(
      f"attacks={','.join(early)}: they stop at misclassification, which is "
      f"not what fools this model (it may reject inputs): choose from {fit}"
    )


def key_of(name: str, seed: int) -> Array:
  """The key of an attack: the same whichever others run beside it."""
  return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))


def aim(
  name: str, key: Array, logits: np.ndarray, label: np.ndarray
) -> types.PyTree:
  """What the attack is given for each example [N].

  Example i is drawn with `fold_in(key, i)`, so its target does not depend on
  how many there are.
  """
  keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(label)))
  y = ATTACKS[name].aim(keys, jnp.asarray(logits), jnp.asarray(label))
  return jax.tree.map(np.asarray, y)
