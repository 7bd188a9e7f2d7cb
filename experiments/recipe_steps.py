"""From a recipe and its flags to the step of a training loop."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments import parts, recipes
from jaxadv import checks, train_state, types
from jaxadv.data import mixing
from jaxadv.defences import free, training

Partial = jax.tree_util.Partial


class Training(NamedTuple):
  """A recipe with all that flags say about it.

  Attributes:
    name: In `recipes.RECIPES`.
    ball: Makes the ball of a radius.
    eps: The radius.
    num_steps: Of the attack.
    step_size: Their length at the full radius; None for 2.5 eps / num_steps.
    number: Overrides the recipe's; None for its own.
    num_classes: Of the data.
    warmup_steps: Over which the radius grows to eps.
    total_steps: Of the training.
    augment: Of the images, before the recipe's own.
  """

  name: str
  ball: Callable[[types.Scalar], types.Ball]
  eps: float
  num_steps: int
  step_size: float | None
  number: float | None
  num_classes: int
  warmup_steps: float
  total_steps: int
  augment: training.Augment | None

  def num_updates(self) -> int:
    """Of the weights: `free` makes one per replay."""
    replays = int(self.tuned()) if self.name == "free" else 1
    return replays * self.total_steps

  def tuned(self) -> float:
    """The number of the recipe."""
    default = recipes.RECIPES[self.name].number
    return (default or 0.0) if self.number is None else self.number


def step_fn(
  plan: Training,
  apply_fn: train_state.TrainApply,
  helpers: parts.Helpers = (),
) -> Callable:
  """`(state, batch) -> (state, metrics)`; the helpers' weights are leaves."""
  step = _free_step if plan.name == "free" else _step
  return Partial(functools.partial(step, plan, apply_fn), helpers)


def start(
  plan: Training, state: train_state.TrainState, x: Any
) -> train_state.TrainState:
  """What the recipe needs in the state, for batches shaped as `x`."""
  return free.start(state, x) if plan.name == "free" else state


def check(plan: Training, helpers: parts.Helpers) -> None:
  """Builds the parts once, for nothing compiles where one refuses its number.

  Raises:
    ValueError: one does.
  """
  if plan.name == "free":
    checks.num_steps(int(plan.tuned()), "num_replays")
  else:
    setting = _setting(plan, helpers, 1.0, 0.0, jax.random.key(0))
    recipes.RECIPES[plan.name].build(setting)


def _setting(
  plan: Training,
  helpers: parts.Helpers,
  share: types.Scalar,
  progress: types.Scalar,
  key: jax.Array,
) -> parts.Setting:
  """What the parts are built with, at that share of the radius."""
  step_size = plan.step_size
  if step_size is None:
    step_size = 2.5 * plan.eps / plan.num_steps
  return parts.Setting(
    ball=plan.ball(share * plan.eps),
    num_steps=plan.num_steps,
    step_size=share * step_size,
    number=plan.tuned(),
    num_classes=plan.num_classes,
    progress=progress,
    key=key,
    helpers=helpers,
  )


def _share_of_radius(plan: Training, state) -> jax.Array:
  return jnp.minimum((state.step + 1) / max(plan.warmup_steps, 1.0), 1.0)


def _free_step(plan: Training, apply_fn, helpers, state, batch):
  del helpers
  return free.train_step(
    state,
    batch,
    train_apply=apply_fn,
    ball=plan.ball(_share_of_radius(plan, state) * plan.eps),
    num_replays=int(plan.tuned()),
    augment=plan.augment,
  )


def _step(plan: Training, apply_fn, helpers, state, batch):
  key = jax.random.fold_in(state.key, state.step)
  setting = _setting(
    plan,
    helpers,
    _share_of_radius(plan, state),
    state.step / plan.total_steps,
    jax.random.fold_in(key, 0),
  )
  options = recipes.RECIPES[plan.name].build(setting)
  both = (plan.augment, options.pop("augment", None))
  transforms = [transform for transform in both if transform]
  return training.train_step(
    state,
    batch,
    train_apply=apply_fn,
    augment=mixing.chain(*transforms) if transforms else None,
    **options,
  )
