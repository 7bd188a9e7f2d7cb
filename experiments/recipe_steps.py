"""From a recipe and its flags to the step of a training loop."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments import recipes
from jaxadv import train_state, types
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
  helpers: recipes.Helpers = (),
) -> Callable:
  """`(state, batch) -> (state, metrics)`; the helpers' weights are leaves."""
  step = _free_step if plan.name == "free" else _step
  return Partial(functools.partial(step, plan, apply_fn), helpers)


def start(
  plan: Training, state: train_state.TrainState, x: Any
) -> train_state.TrainState:
  """What the recipe needs in the state, for batches shaped as `x`."""
  return free.start(state, x) if plan.name == "free" else state


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
  share = _share_of_radius(plan, state)
  step_size = plan.step_size
  if step_size is None:
    step_size = 2.5 * plan.eps / plan.num_steps
  key = jax.random.fold_in(state.key, state.step)
  setting = recipes.Setting(
    ball=plan.ball(share * plan.eps),
    num_steps=plan.num_steps,
    step_size=share * step_size,
    number=plan.tuned(),
    num_classes=plan.num_classes,
    progress=state.step / plan.total_steps,
    key=jax.random.fold_in(key, 0),
    helpers=helpers,
  )
  parts = recipes.RECIPES[plan.name].build(setting)
  both = (plan.augment, parts.pop("augment", None))
  transforms = [transform for transform in both if transform]
  return training.train_step(
    state,
    batch,
    train_apply=apply_fn,
    augment=mixing.chain(*transforms) if transforms else None,
    **parts,
  )
