"""Sigma-zero: minimum L0 norm, by a smooth stand-in for the L0 norm."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxadv import checks, criteria, losses, norms, numerics, oracles, types
from jaxadv.attacks import minimum_norm

Array = jax.Array
Partial = jax.tree_util.Partial

# The step size at the end as a share of the first (the authors').
_LAST_SHARE = 0.1


class State(NamedTuple):
  """The rows of a sigma-zero search (see `types.State`, `minimum_norm`)."""

  x: Array
  y: types.PyTree
  keys: Array
  step: Array
  point: Array
  threshold: Array  # Smaller changes are undone.
  opt_state: Any
  distance: Array
  x_adv: Array
  found: Array
  done: Array


class _Rule(NamedTuple):
  num_steps: int
  step_size: types.Scalar
  sigma: types.Scalar
  threshold: types.Scalar
  threshold_rate: types.Scalar
  bounds: minimum_norm.Bounds


def sigma_zero(
  *,
  num_steps: int = 1000,
  step_size: types.Scalar = 1.0,
  sigma: types.Scalar = 1e-3,
  threshold: types.Scalar = 0.3,
  threshold_rate: types.Scalar = 0.01,
  loss_fn: types.LossFn = losses.margin,
  criterion: types.Criterion = criteria.misclassified,
  bounds: minimum_norm.Bounds = (0.0, 1.0),
) -> types.Attack:
  """Sigma-zero: the fewest changed coordinates.

  Adam descends, from the clean input,

    max(-loss, 0) + mean(delta_i^2 / (delta_i^2 + sigma)),

  whose gradient is divided by its largest magnitude, with a step size that
  falls to a tenth along half a cosine. The result is clipped to the bounds;
  changes smaller than the row's threshold are then undone. The threshold rises
  by `threshold_rate * step size` where the point won and falls by it where not.

  The point that won with the fewest changes is the result; a row without one
  keeps its clean input, and a row that wins there is done with the first step.
  `num_steps` gradients per row: the model is not asked about what the last one
  leads to. A pixel counts once for each of its channels.

  The defaults are adv-lib's. The lengths (`step_size`, `threshold`, the root
  of `sigma`) are in the units of inputs in [0, 1].

  Args:
    num_steps: Gradients per row.
    step_size: The first step size.
    sigma: How sharply the stand-in tells zero from other values.
    threshold: The first threshold.
    threshold_rate: How fast it changes.
    loss_fn: Positive where the row is lost to the attacker.
    criterion: What counts as a win.
    bounds: The range of inputs.

  Raises:
    TypeError: `num_steps` is not an integer.
    ValueError: `num_steps` is below 1, `step_size` or `sigma` is not positive,
      a number of the threshold is negative, or the bounds are not a range.

  Reference: Cina et al., "Sigma-zero: gradient-based optimization of l0-norm
  adversarial examples", 2025.
  """
  checks.num_steps(num_steps)
  checks.positive("step_size", step_size)
  checks.positive("sigma", sigma)
  checks.non_negative("threshold", threshold)
  checks.non_negative("threshold_rate", threshold_rate)
  checks.bounds(bounds)
  rule = _Rule(num_steps, step_size, sigma, threshold, threshold_rate, bounds)
  return types.Attack(
    init=Partial(_init, rule),
    step=Partial(
      _step, rule, types.hashable(loss_fn), types.hashable(criterion)
    ),
    num_steps=num_steps,
    threat=types.threat(None, bounds, criterion),
  )


def _init(rule, keys, x, y) -> State:
  dtype = numerics.wide_type(x)
  return State(
    **minimum_norm.start(x),
    point=x,
    y=y,
    keys=keys,
    threshold=jnp.full(x.shape[0], rule.threshold, dtype),
    opt_state=jax.vmap(optax.scale_by_adam().init)(x.astype(dtype)),
  )


def _step(
  rule, loss_fn, criterion, logits_fn, state
) -> tuple[State, types.PyTree]:
  keys = oracles.step_keys(state.keys, state.step)
  answer = oracles.loss_and_gradient(
    logits_fn, loss_fn, keys, state.point, state.y
  )
  won = oracles.satisfied(criterion, answer.outputs, state.y)
  move = jax.vmap(functools.partial(_move, rule))
  changes = move(state, won, answer.loss, answer.grad)
  state = minimum_norm.finish_step(state, norms.L0, won)
  return state._replace(**changes), answer.outputs


def _move(rule, state: State, won, loss, grad) -> dict[str, Any]:
  """What changes in ONE row's state."""
  first = rule.step_size
  step_size = minimum_norm.cosine(
    state.step, rule.num_steps, first, _LAST_SHARE * first
  )
  delta = minimum_norm.perturbation(state)
  grad = grad.astype(delta.dtype)
  stand_in = 2 * rule.sigma * delta / jnp.square(delta**2 + rule.sigma)
  grad = stand_in / delta.size - jnp.where(loss < 0, grad, 0.0)
  largest = jnp.max(jnp.abs(grad))
  grad = grad / jnp.where(largest > 0, largest, 1.0)
  update, opt_state = optax.scale_by_adam().update(grad, state.opt_state)
  low, high = rule.bounds
  moved = jnp.clip(delta - step_size * update, low - state.x, high - state.x)
  rate = jnp.where(won, 1, -1) * rule.threshold_rate * step_size
  threshold = jnp.clip(state.threshold + rate, 0.0, high - low)
  moved = jnp.where(jnp.abs(moved) < threshold, 0.0, moved)
  return {
    "point": minimum_norm.inside(state.x, moved, rule.bounds),
    "threshold": threshold,
    "opt_state": opt_state,
  }
