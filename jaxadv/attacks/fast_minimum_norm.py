"""FMN: the fast minimum-norm attack, in Linf, L2, L1 and L0.

From `delta = 0`, with g the gradient of the loss at `x + delta` (scaled to
length 1 in L2, whatever the norm), a step size `a` and a rate `gamma` that both
fall along half a cosine, and P the projection onto the ball and the bounds:

  eps <- the next radius: less where the point won, else more
  delta <- P_eps(delta + a * g)

`fmn` and `fmn_l0` differ in the next radius. In both it never exceeds that of
the farthest corner of the bounds, and the nearest point that won is the result:
a row without one keeps its clean input, and a row that wins there is done with
the first step. `num_steps` gradients per row: the model is not asked about what
the last one leads to.

All head for the likeliest class, as in the paper; where another is nearer,
`multi_targeted` finds it.

The step sizes (1 to 0.01) and rates (0.05 to 0.001) are those of adv-lib, and
so is the loss, the margin. It has to be positive just where the criterion holds
for the distance to the boundary to mean anything.

Reference: Pintor et al., "Fast minimum-norm adversarial attacks through
adaptive norm constraints", 2021.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxadv import (
  balls,
  checks,
  criteria,
  losses,
  norms,
  numerics,
  oracles,
  types,
)
from jaxadv.attacks import minimum_norm

Array = jax.Array
Partial = jax.tree_util.Partial

# The last step size as a share of the first (the authors').
_LAST_SHARE = 0.01


class State(NamedTuple):
  """The rows of an FMN search (see `types.State`, `minimum_norm`)."""

  x: Array
  y: types.PyTree
  keys: Array
  step: Array
  point: Array
  eps: Array  # The radius of the ball that `point` was projected onto.
  distance: Array
  x_adv: Array
  found: Array
  done: Array


class _Rule(NamedTuple):
  ball: types.Static  # Makes the ball of a radius.
  radius: Partial
  num_steps: int
  step_size: types.Scalar
  gamma: types.Scalar
  gamma_final: types.Scalar
  bounds: minimum_norm.Bounds

  def norm(self, delta: Array) -> Array:
    """The size of `delta`."""
    return self.ball(0.0).norm(delta)


def fmn(
  norm: norms.Norm,
  *,
  num_steps: int = 100,
  step_size: types.Scalar = 1.0,
  gamma: types.Scalar = 0.05,
  gamma_final: types.Scalar = 0.001,
  loss_fn: types.LossFn = losses.margin,
  criterion: types.Criterion = criteria.misclassified,
  bounds: minimum_norm.Bounds = (0.0, 1.0),
) -> types.Attack:
  """Fast minimum norm, in a norm with a linear distance to the boundary.

  The next radius, with `||delta||` the size of the current perturbation:

    the point won             min((1 - gamma) eps, distance of the best point)
    else, after a first win   (1 + gamma) eps
    before a first win        ||delta|| + |loss| / ||grad loss||_dual, but no
                              less than (1 + gamma) eps

  The last bound is an addition: an estimate that falls short, step after step,
  leads up to the boundary from the clean side and never across. L1 is projected
  onto ball and bounds at once, where adv-lib clips after projecting.

  Args:
    norm: `norms.Linf`, `norms.L2` or `norms.L1`.
    num_steps: Gradients per row (adv-lib: 10).
    step_size: The first step, in L2 whatever the norm; the last is a hundredth.
    gamma: The first relative change of the radius, in (0, 1).
    gamma_final: The last one, likewise.
    loss_fn: What to maximise.
    criterion: What counts as a win.
    bounds: The range of inputs.

  Raises:
    TypeError: `norm` is none or `num_steps` is not an integer.
    ValueError: `num_steps` is below 1, `step_size` is not positive, a rate is
      not in (0, 1), or the bounds are not a range.

  Reference: see the module.
  """
  checks.norm(norm)
  return _attack(
    _Rule(
      types.Static(norm.ball),
      Partial(types.Static(_scaled), norm),
      num_steps,
      step_size,
      gamma,
      gamma_final,
      bounds,
    ),
    loss_fn,
    criterion,
  )


def fmn_l0(
  *,
  num_steps: int = 100,
  step_size: types.Scalar = 1.0,
  gamma: types.Scalar = 0.05,
  gamma_final: types.Scalar = 0.001,
  loss_fn: types.LossFn = losses.margin,
  criterion: types.Criterion = criteria.misclassified,
  bounds: minimum_norm.Bounds = (0.0, 1.0),
) -> types.Attack:
  """Fast minimum norm, by the number of coordinates that change.

  The radius is a whole number that changes by 1 at least: where the point won,
  `min(eps - 1, floor((1 - gamma) eps))`, but no more than the distance of the
  best point; else `max(eps + 1, floor((1 + gamma) eps))`. A pixel counts once
  for each of its channels. Arguments and errors are those of `fmn`.
  """
  return _attack(
    _Rule(
      types.Static(balls.L0),
      Partial(_counted),
      num_steps,
      step_size,
      gamma,
      gamma_final,
      bounds,
    ),
    loss_fn,
    criterion,
  )


def _attack(
  rule: _Rule, loss_fn: types.LossFn, criterion: types.Criterion
) -> types.Attack:
  checks.num_steps(rule.num_steps)
  checks.positive("step_size", rule.step_size)
  for name in ("gamma", "gamma_final"):
    rate = getattr(rule, name)
    checks.positive(name, rate)
    checks.below_one(name, rate)
  checks.bounds(rule.bounds)
  return types.Attack(
    init=Partial(_init),
    step=Partial(
      _step, rule, types.hashable(loss_fn), types.hashable(criterion)
    ),
    num_steps=rule.num_steps,
    threat=types.threat(None, rule.bounds, criterion),
  )


def _init(keys, x, y) -> State:
  eps = jnp.zeros(x.shape[0], numerics.wide_type(x))
  return State(**minimum_norm.start(x), point=x, y=y, keys=keys, eps=eps)


def _step(
  rule, loss_fn, criterion, logits_fn, state
) -> tuple[State, types.PyTree]:
  keys = oracles.step_keys(state.keys, state.step)
  answer = oracles.loss_and_gradient(
    logits_fn, loss_fn, keys, state.point, state.y
  )
  won = oracles.satisfied(criterion, answer.outputs, state.y)
  step = state.step
  state = minimum_norm.finish_step(state, rule.norm, won)
  move = jax.vmap(functools.partial(_move, rule))
  point, eps = move(state, step, won, answer.loss, answer.grad)
  return state._replace(point=point, eps=eps), answer.outputs


def _move(rule, state: State, step, won, loss, grad) -> tuple[Array, Array]:
  """The next point and radius of ONE row."""
  schedule = functools.partial(minimum_norm.cosine, step, rule.num_steps)
  step_size = schedule(rule.step_size, _LAST_SHARE * rule.step_size)
  gamma = schedule(rule.gamma, rule.gamma_final)
  delta = minimum_norm.perturbation(state)
  grad = grad.astype(delta.dtype)
  eps = rule.radius(gamma, state, rule.norm(delta), won, loss, grad)
  eps = jnp.minimum(eps, rule.norm(minimum_norm.room(state.x, rule.bounds)))
  moved = delta + step_size * numerics.unit_l2(grad)
  low, high = rule.bounds
  moved = rule.ball(eps).project_box(moved, low - state.x, high - state.x)
  return minimum_norm.inside(state.x, moved, rule.bounds), eps


def _scaled(norm, gamma, state: State, size, won, loss, grad) -> Array:
  rate = norm.dual(grad)
  known = (rate > 0) & jnp.isfinite(loss)
  gap = jnp.where(known, jnp.abs(loss) / jnp.where(known, rate, 1.0), jnp.inf)
  more = (1 + gamma) * state.eps
  first = jnp.maximum(size + gap, more)
  less = jnp.minimum((1 - gamma) * state.eps, state.distance)
  return jnp.where(won, less, jnp.where(state.found, more, first))


def _counted(gamma, state: State, size, won, loss, grad) -> Array:
  del size, loss, grad
  eps = state.eps
  more = jnp.maximum(eps + 1, jnp.floor((1 + gamma) * eps))
  less = jnp.minimum(eps - 1, jnp.floor((1 - gamma) * eps))
  less = jnp.maximum(jnp.minimum(less, state.distance), 0.0)
  return jnp.where(won, less, more)
