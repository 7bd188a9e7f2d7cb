"""The step size that adapts by itself, of Auto-PGD and of ACG.

Their states hold the fields of `start`. Progress is looked at where a period of
steps ends:

  the first period lasts `max(int(0.22 n), 1)` steps, each further one
  `max(int(0.03 n), 1)` less but never below `max(int(0.06 n), 1)`, for n steps
  in all; the step size halves where at most `rho` of the period's steps raised
  the loss, or where the last look did not halve it and the best loss has not
  grown since.

In the first period the reference code compares the loss of the first point with
0 where the paper compares it with that of the start; this is the paper's rule.
The two differ only in losses that can be negative.

Reference: Croce, Hein, "Reliable evaluation of adversarial robustness with an
ensemble of diverse parameter-free attacks", 2020.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxadv import oracles, types

Array = jax.Array


def start(
  x: Array, point: Array, num_steps: Array | int, step_size: types.Scalar
) -> dict[str, Array]:
  """The fields of the states before the first point is evaluated."""
  zero = jnp.zeros(len(x), jnp.int32)
  no = jnp.zeros(len(x), bool)
  lowest = jnp.full(len(x), -jnp.inf, jnp.promote_types(x.dtype, jnp.float32))
  period = zero + jnp.maximum(22 * num_steps // 100, 1)
  return {
    "x": x,
    "step": zero,  # Points evaluated; the start is number 0.
    "point": point,  # Where the model is asked next.
    "x_adv": point,
    "found": no,
    "done": no,
    "loss": -lowest,  # That of the point before: the start is no rise.
    "step_size": jnp.full(len(x), step_size, x.dtype),
    "checkpoint": period,  # The step that ends the period under way.
    "period": period,  # Its length in steps.
    "rises": zero,  # Steps of the period that raised the loss.
    # Whether the last look halved; nothing can have grown at the first one.
    "halved": zero == 0,
    "checked_loss": lowest,  # `best_loss` at the last look.
    "best_loss": lowest,
  }


def step(
  advance: Callable[..., dict[str, Array]],
  loss_fn: types.LossFn,
  criterion: types.Criterion,
  logits_fn: types.LogitsFn,
  state: Any,
) -> tuple[Any, types.PyTree]:
  """Asks about the points; a row is done at the first that wins.

  `advance` takes the state, the loss and the gradient of ONE row and returns
  what changes: `point`, `x_adv` and what `look` says, at least.
  """
  keys = oracles.step_keys(state.keys, state.step)
  answer = oracles.loss_and_gradient(
    logits_fn, loss_fn, keys, state.point, state.y
  )
  found = oracles.satisfied(criterion, answer.outputs, state.y)
  loss = answer.loss.astype(state.loss.dtype)
  changes = jax.vmap(advance)(state, loss, answer.grad)
  changes["x_adv"] = oracles.choose(found, state.point, changes["x_adv"])
  state = state._replace(
    **changes, step=state.step + 1, found=found, done=found
  )
  return state, answer.outputs


def look(
  state: Any, num_steps: Array | int, rho: types.Scalar, loss: Array
) -> tuple[Array, dict[str, Array]]:
  """Takes in the loss of ONE row's point.

  Returns:
    Whether the step size halves, and so the search returns to its best point;
    what changes in the state.
  """
  # Not `maximum`: a loss that is no number is no progress.
  best_loss = jnp.where(loss > state.best_loss, loss, state.best_loss)
  rises = state.rises + (loss > state.loss)
  ends = state.step == state.checkpoint
  stalled = rises <= rho * state.period
  stuck = ~state.halved & (state.checked_loss >= best_loss)
  halve = ends & (stalled | stuck)
  shorter = jnp.maximum(
    state.period - jnp.maximum(3 * num_steps // 100, 1),
    jnp.maximum(6 * num_steps // 100, 1),
  )
  period = jnp.where(ends, shorter, state.period)
  return halve, {
    "loss": loss,
    "step_size": jnp.where(halve, state.step_size / 2, state.step_size),
    "checkpoint": state.checkpoint + jnp.where(ends, period, 0),
    "period": period,
    "rises": jnp.where(ends, 0, rises),
    "halved": jnp.where(ends, halve, state.halved),
    "checked_loss": jnp.where(ends, best_loss, state.checked_loss),
    "best_loss": best_loss,
  }
