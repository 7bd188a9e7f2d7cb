"""PDPGD: primal-dual proximal gradient descent, for minimum norm.

The least perturbation that wins is a saddle point of

  w_0 ||delta|| + w_1 softplus(-loss(x + delta)),   w_0 + w_1 = 1.

Adam descends the smooth part, a proximal map (`proximal`) takes care of the
norm, which has no slope where it matters, and the weights follow the wins.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxadv import (
  checks,
  criteria,
  losses,
  norms,
  numerics,
  oracles,
  types,
)
from jaxadv.attacks import minimum_norm, proximal

Array = jax.Array
Partial = jax.tree_util.Partial

# The authors' constants: Adam's rates and epsilon; the last step sizes as
# shares of the first; the memory of the weights; the least ratio of the weights
# and its inverse; proximal steps and the relative change that ends them.
_MEAN_RATE, _SQUARE_RATE, _TINY = 0.9, 0.999, 1e-8
_LAST_SHARE, _LAST_DUAL_SHARE = 0.01, 0.1
_MEMORY = 0.9
_LARGEST_LOG = -math.log(1e-6)
_PROXIMAL_STEPS, _CONVERGED = 5, 1e-2


class State(NamedTuple):
  """The rows of a PDPGD search (see `types.State`, `minimum_norm`)."""

  x: Array
  y: types.PyTree
  keys: Array
  step: Array
  point: Array
  mean: Array  # Adam's, of the gradients
  square: Array  # and of their squares.
  log_ratio: Array  # log(w_1 / w_0) as the wins have it.
  weight: Array  # w_0, a running mean.
  distance: Array
  x_adv: Array
  found: Array
  done: Array


class _Rule(NamedTuple):
  norm: Any  # What is to be small, of ONE perturbation.
  prox: Any  # What pulls it back, see `proximal`.
  num_steps: int
  step_size: types.Scalar
  dual_step_size: types.Scalar
  first_ratio: types.Scalar
  bounds: minimum_norm.Bounds


def pdpgd(
  norm: norms.Norm,
  *,
  num_steps: int = 500,
  step_size: types.Scalar = 0.1,
  dual_step_size: types.Scalar = 0.1,
  first_ratio: types.Scalar = 0.01,
  loss_fn: types.LossFn = losses.margin,
  criterion: types.Criterion = criteria.misclassified,
  bounds: minimum_norm.Bounds = (0.0, 1.0),
) -> types.Attack:
  """Primal-dual proximal gradient descent: L1, L2 or Linf.

  From the clean input, with a step size `a` that falls to a hundredth of the
  first, exponentially, each step

    moves delta by Adam down the slope of `softplus(-loss)`, then clips it;
    lets the norm pull it back, five times or until it changes by under 1 %,

      z <- clip(prox(z - H (z - delta), (w_0 / w_1) a / max(D))),

    from z = delta, where D is Adam's divisor, `H = D / max(D)` and
    `prox(v, m)` minimises `m ||z|| + ||z - v||_2^2 / 2`: it is v less the
    projection of v onto the ball of radius m of the dual norm;
    lowers log(w_1 / w_0) by a dual step where the loss is positive and raises
    it where it is negative, within the logarithms of 1e-6 and 1e6. The dual
    step falls to a tenth of the first in a straight line. The weight used is a
    running mean with memory 0.9.

  The nearest point that won is the result; a row without one keeps its clean
  input, and a row that wins there is done with the first step. `num_steps`
  gradients per row: the model is not asked about what the last one leads to.
  Defaults and constants are adv-lib's.

  Args:
    norm: `norms.Linf`, `norms.L2` or `norms.L1`.
    num_steps: Gradients per row.
    step_size: Adam's first step, in the units of the input.
    dual_step_size: The first step of log(w_1 / w_0).
    first_ratio: w_0 / w_1 at the start.
    loss_fn: What to maximise; positive where the row is lost to the attacker.
    criterion: What counts as a win.
    bounds: The range of inputs.

  Raises:
    TypeError: `norm` is none or `num_steps` is not an integer.
    ValueError: `norm` is another one, `num_steps` is below 1, a step size or
      the ratio is not positive, or the bounds are not a range.

  Reference: Matyasko, Chau, "PDPGD: primal-dual proximal gradient descent
  adversarial attack", 2021.
  """
  checks.norm(norm)
  if norm not in proximal.OF_NORM:
    raise ValueError(
      f"norm must be norms.Linf, norms.L2 or norms.L1, got norm={norm!r}, "
      "whose proximal map is not known; pdpgd_l0 is for L0"
    )
  prox = types.Static(proximal.OF_NORM[norm])
  numbers = (num_steps, step_size, dual_step_size, first_ratio)
  return _attack(_Rule(norm, prox, *numbers, bounds), loss_fn, criterion)


def pdpgd_l0(
  *,
  num_steps: int = 500,
  step_size: types.Scalar = 0.1,
  dual_step_size: types.Scalar = 0.1,
  first_ratio: types.Scalar = 0.01,
  loss_fn: types.LossFn = losses.margin,
  criterion: types.Criterion = criteria.misclassified,
  bounds: minimum_norm.Bounds = (0.0, 1.0),
) -> types.Attack:
  """PDPGD for the fewest changed coordinates.

  As `pdpgd`, with the proximal map of `sum |z_i|^(2/3)`, which sets small
  changes to zero and leaves large ones nearly as they are: the authors', and
  adv-lib's advice. That of the L0 norm itself is a hard threshold, which undoes
  most steps. The nearest point is that of fewest changes. A pixel counts once
  for each of its channels. Defaults and constants are adv-lib's.

  Args:
    num_steps: Gradients per row.
    step_size: Adam's first step, in the units of the input.
    dual_step_size: The first step of log(w_1 / w_0).
    first_ratio: w_0 / w_1 at the start.
    loss_fn: What to maximise; positive where the row is lost to the attacker.
    criterion: What counts as a win.
    bounds: The range of inputs.

  Raises:
    TypeError: `num_steps` is not an integer.
    ValueError: `num_steps` is below 1, a step size or the ratio is not
      positive, or the bounds are not a range.

  Reference: Matyasko, Chau, "PDPGD: primal-dual proximal gradient descent
  adversarial attack", 2021.
  """
  norm, prox = types.Static(norms.L0), types.Static(proximal.two_thirds)
  numbers = (num_steps, step_size, dual_step_size, first_ratio)
  return _attack(_Rule(norm, prox, *numbers, bounds), loss_fn, criterion)


def _attack(rule: _Rule, loss_fn, criterion) -> types.Attack:
  checks.num_steps(rule.num_steps)
  checks.positive("step_size", rule.step_size)
  checks.positive("dual_step_size", rule.dual_step_size)
  checks.positive("first_ratio", rule.first_ratio)
  checks.bounds(rule.bounds)
  return types.Attack(
    init=Partial(_init, rule),
    step=Partial(
      _step, rule, types.hashable(loss_fn), types.hashable(criterion)
    ),
    num_steps=rule.num_steps,
    threat=types.threat(None, rule.bounds, criterion),
  )


def _init(rule, keys, x, y) -> State:
  zeros = jnp.zeros(x.shape, numerics.wide_type(x))
  log_ratio = jnp.full(len(x), -jnp.log(rule.first_ratio), zeros.dtype)
  return State(
    **minimum_norm.start(x),
    point=x,
    y=y,
    keys=keys,
    mean=zeros,
    square=zeros,
    log_ratio=log_ratio,
    weight=jax.nn.sigmoid(-log_ratio),
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
  # A loss that is not a number tells nothing, and would stay in the averages.
  loss = jnp.where(jnp.isnan(answer.loss), 0.0, answer.loss)
  changes = move(state, loss, answer.grad)
  state = minimum_norm.finish_step(state, rule.norm, won)
  return state._replace(**changes), answer.outputs


def _move(rule, state: State, loss, grad) -> dict[str, Any]:
  """What changes in ONE row's state."""
  low, high = (bound - state.x for bound in rule.bounds)
  delta = minimum_norm.perturbation(state)
  # The slope of softplus(-loss).
  grad = -jax.nn.sigmoid(-loss.astype(delta.dtype)) * grad.astype(delta.dtype)
  mean = _MEAN_RATE * state.mean + (1 - _MEAN_RATE) * grad
  square = _SQUARE_RATE * state.square + (1 - _SQUARE_RATE) * grad**2
  # A product of a float and an integer would be a float64, where there are any.
  step = state.step.astype(delta.dtype)
  count = step + 1
  divisor = jnp.sqrt(square / (1 - _SQUARE_RATE**count)) + _TINY
  step_size = rule.step_size * _LAST_SHARE ** (step / rule.num_steps)
  update = mean / (1 - _MEAN_RATE**count) / divisor
  delta = jnp.clip(delta - step_size * update, low, high)
  largest = jnp.max(divisor)
  pull = state.weight / (1 - state.weight) * step_size / largest

  def prox(v):
    return rule.prox(v, pull)

  delta = _pulled_back(prox, delta, divisor / largest, low, high)
  return _weigh(rule, state, loss) | {
    "point": minimum_norm.inside(state.x, delta, rule.bounds),
    "mean": mean,
    "square": square,
  }


def _pulled_back(prox, delta, scale, low, high) -> Array:
  """The proximal steps from ONE `delta`, each coordinate at its own scale."""

  def pull(z, change):
    v = z - scale * (z - delta)
    new = jnp.clip(prox(v), low, high)
    new = jnp.where(change > _CONVERGED, new, z)
    size = norms.L2(new)
    change = norms.L2(new - z) / jnp.where(size > 0, size, 1.0)
    return new, change

  z, change = delta, jnp.ones((), delta.dtype)
  for _ in range(_PROXIMAL_STEPS):
    z, change = pull(z, change)
  return z


def _weigh(rule, state: State, loss) -> dict[str, Any]:
  """The weights of ONE row after a loss."""
  step = state.step.astype(state.weight.dtype)
  left = (rule.num_steps - 1 - step) / jnp.maximum(rule.num_steps - 1, 1)
  share = left * (1 - _LAST_DUAL_SHARE) + _LAST_DUAL_SHARE
  sign = jnp.sign(loss).astype(step.dtype)
  log_ratio = state.log_ratio - rule.dual_step_size * share * sign
  log_ratio = jnp.clip(log_ratio, -_LARGEST_LOG, _LARGEST_LOG)
  weight = jax.nn.sigmoid(-log_ratio)
  return {
    "log_ratio": log_ratio,
    "weight": _MEMORY * state.weight + (1 - _MEMORY) * weight,
  }
