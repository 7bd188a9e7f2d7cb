"""What a training step reads and returns, as one pytree."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import struct
from flax.training import train_state

from jaxadv import checks, models, types

Array = jax.Array
# `(variables, key, x[B, ...]) -> (logits[B, C], batch_stats)`: dropout is on
# and batch normalisation uses the batch.
TrainApply = Callable[[types.PyTree, Array, Array], tuple[Array, types.PyTree]]


class TrainState(train_state.TrainState):
  """Flax's `TrainState` (step, params, optimiser) and what training adds.

  `apply_fn(variables, x) -> logits` is the evaluation view of the network:
  frozen batch statistics, no dropout.

  Attributes:
    batch_stats: Running statistics of batch normalisation; empty without.
    key: The PRNG key of the whole run. Step i uses `fold_in(key, i)`, so a
      state that is restored goes on exactly as if it had never stopped.
    averaged: Exponential moving average of `variables`, or None.
    ema_decay: The decay of that average.
    carry: What a way of training keeps from step to step beside the weights
      (free training: the perturbation), or None.
  """

  batch_stats: Any
  key: Array
  averaged: Any = None
  ema_decay: float = struct.field(pytree_node=False, default=0.0)
  carry: Any = None

  @property
  def variables(self) -> types.PyTree:
    """The current weights as `apply_fn` takes them: what training attacks."""
    if self.batch_stats:
      return {"params": self.params, "batch_stats": self.batch_stats}
    return {"params": self.params}

  @property
  def eval_variables(self) -> types.PyTree:
    """The variables to evaluate and keep: the average where there is one."""
    return self.variables if self.averaged is None else self.averaged

  def logits_fn(self) -> types.LogitsFn:
    """The current weights as a bound model."""
    return models.bind(self.apply_fn, self.variables)

  def update(self, grads: types.PyTree, batch_stats: Any) -> "TrainState":
    """One optimiser step, then one step of the average.

    The average moves by `min(ema_decay, (1 + step) / (10 + step))`, so that it
    forgets the initial weights early on, as in TensorFlow's
    `ExponentialMovingAverage`. Batch statistics are averaged alike. Where
    `optax.MultiSteps` gathers gradients, it waits for the step that moves the
    weights, and counts these alone.
    """
    state = self.apply_gradients(grads=grads, batch_stats=batch_stats)
    if self.averaged is None:
      return state
    moved, step = _moves(state)
    decay = jnp.minimum(self.ema_decay, (1 + step) / (10 + step))
    averaged = optax.incremental_update(
      state.variables, self.averaged, jnp.where(moved, 1.0 - decay, 0.0)
    )
    return state.replace(averaged=averaged)


def _moves(state: TrainState) -> tuple[Array | bool, Array]:
  """Whether the last step moved the weights, and how many have."""
  gathers = lambda node: isinstance(node, optax.MultiStepsState)
  nodes = jax.tree.leaves(state.opt_state, is_leaf=gathers)
  found = [node for node in nodes if gathers(node)]
  if not found:
    return True, state.step
  return found[0].mini_step == 0, found[0].gradient_step


def create(
  module: nn.Module,
  optimizer: optax.GradientTransformation,
  key: Array,
  x: Array | np.ndarray,
  *,
  ema_decay: float = 0.0,
) -> TrainState:
  """A state with fresh weights.

  Args:
    module: A network, called as `module(x, train=...)`.
    optimizer: Any optax optimiser.
    key: A PRNG key, for the weights and for the whole run.
    x: Inputs [B, ...] of the right shape; their values do not matter.
    ema_decay: Decay of the average of the weights; 0 keeps none.

  Raises:
    ValueError: `ema_decay` is not in [0, 1).
  """
  checks.non_negative("ema_decay", ema_decay)
  checks.below_one("ema_decay", ema_decay)
  key_weights, key_run = jax.random.split(key)
  variables = module.init(key_weights, x)
  state = TrainState.create(
    apply_fn=module.apply,
    params=variables["params"],
    tx=optimizer,
    batch_stats=variables.get("batch_stats", {}),
    key=key_run,
    ema_decay=ema_decay,
  )
  if ema_decay:
    # Buffers of its own: those of the weights are donated to the step.
    state = state.replace(averaged=jax.tree.map(jnp.copy, state.variables))
  return state.replace(step=jnp.zeros((), jnp.int32))


def train_apply(module: nn.Module) -> TrainApply:
  """The training view of a network that is called as `module(x, train=...)`."""

  def apply(variables: types.PyTree, key: Array, x: Array):
    logits, updated = module.apply(
      variables,
      x,
      train=True,
      mutable=["batch_stats"],
      rngs={"dropout": key},
    )
    return logits, updated.get("batch_stats", {})

  return apply
