"""DDN: the decoupled direction and norm attack, for minimum L2 norm."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxadv import checks, criteria, losses, norms, numerics, oracles, types
from jaxadv.attacks import minimum_norm

Array = jax.Array
Partial = jax.tree_util.Partial

# The step size falls from the first to the last (the authors').
_STEP_SIZES = 1.0, 0.01


class State(NamedTuple):
  """The rows of a DDN search (see `types.State`, `minimum_norm`)."""

  x: Array
  y: types.PyTree
  keys: Array
  step: Array
  point: Array
  eps: Array  # The radius of the sphere that `point` was put on.
  distance: Array
  x_adv: Array
  found: Array
  done: Array


class _Rule(NamedTuple):
  num_steps: int
  gamma: types.Scalar
  init_norm: types.Scalar
  bounds: minimum_norm.Bounds


def ddn(
  *,
  num_steps: int = 100,
  gamma: types.Scalar = 0.05,
  init_norm: types.Scalar = 1.0,
  loss_fn: types.LossFn = losses.cross_entropy,
  criterion: types.Criterion = criteria.misclassified,
  bounds: minimum_norm.Bounds = (0.0, 1.0),
) -> types.Attack:
  """Decoupled direction and norm: L2, the direction learnt, the radius walked.

  The model is asked about `x + delta`; with g the gradient of the loss there,
  at length 1, and a step size `a` that falls from 1 to 0.01 along a cosine:

    eps <- (1 - gamma) eps where the point won, else (1 + gamma) eps
    delta <- clip(eps * unit(delta + a * g))

  The radius never exceeds the distance to the farthest corner of the bounds. A
  gradient of exactly zero is replaced by a random direction. The nearest point
  that won is the result; a row without one keeps its clean input, and a row
  that wins there is done with the first step. Nothing is rounded to the 256
  levels of an image, as adv-lib does by default. It heads for the likeliest
  class; where another is nearer, `multi_targeted` finds it.

  `num_steps` gradients per row: the model is not asked about what the last one
  leads to. 100 steps, gamma 0.05 and radius 1 are adv-lib's.

  Args:
    num_steps: Gradients per row.
    gamma: The relative change of the radius, in (0, 1).
    init_norm: The first radius, in the units of the input.
    loss_fn: What to maximise.
    criterion: What counts as a win.
    bounds: The range of inputs.

  Raises:
    TypeError: `num_steps` is not an integer.
    ValueError: `num_steps` is below 1, `gamma` is not in (0, 1), `init_norm` is
      not positive, or the bounds are not a range.

  Reference: Rony et al., "Decoupling direction and norm for efficient
  gradient-based L2 adversarial attacks and defenses", 2019.
  """
  checks.num_steps(num_steps)
  checks.positive("gamma", gamma)
  checks.below_one("gamma", gamma)
  checks.positive("init_norm", init_norm)
  checks.bounds(bounds)
  rule = _Rule(num_steps, gamma, init_norm, bounds)
  return types.Attack(
    init=Partial(_init, rule),
    step=Partial(
      _step, rule, types.hashable(loss_fn), types.hashable(criterion)
    ),
    num_steps=num_steps,
    threat=types.threat(None, bounds, criterion),
  )


def _init(rule, keys, x, y) -> State:
  return State(
    **minimum_norm.start(x),
    point=x,
    y=y,
    keys=keys,
    eps=jnp.full(x.shape[0], rule.init_norm, numerics.wide_type(x)),
  )


def _step(
  rule, loss_fn, criterion, logits_fn, state
) -> tuple[State, types.PyTree]:
  keys = oracles.step_keys(state.keys, state.step)
  answer = oracles.loss_and_gradient(
    logits_fn, loss_fn, keys, state.point, state.y
  )
  won = oracles.satisfied(criterion, answer.outputs, state.y)
  direction = _direction(state, answer.grad)
  point, eps = jax.vmap(functools.partial(_move, rule))(state, won, direction)
  state = minimum_norm.finish_step(state, norms.L2, won)
  return state._replace(point=point, eps=eps), answer.outputs


def _direction(state: State, grad: Array) -> Array:
  grad = grad.astype(numerics.wide_type(grad))
  flat = ~jnp.any(grad != 0, axis=tuple(range(1, grad.ndim)))

  def drawn():
    keys = oracles.own_keys(state.keys, state.step)
    draw = functools.partial(
      jax.random.normal, shape=grad.shape[1:], dtype=grad.dtype
    )
    return oracles.choose(flat, jax.vmap(draw)(keys), grad)

  # Drawing for every row would cost as much as a small network.
  grad = jax.lax.cond(jnp.any(flat), drawn, lambda: grad)
  return jax.vmap(numerics.unit_l2)(grad)


def _move(rule, state: State, won, direction) -> tuple[Array, Array]:
  step_size = minimum_norm.cosine(state.step, rule.num_steps, *_STEP_SIZES)
  moved = minimum_norm.perturbation(state) + step_size * direction
  farthest = norms.L2(minimum_norm.room(state.x, rule.bounds))
  factor = jnp.where(won, 1 - rule.gamma, 1 + rule.gamma)
  eps = jnp.minimum(state.eps * factor, farthest)
  delta = eps * numerics.unit_l2(moved)
  return minimum_norm.inside(state.x, delta, rule.bounds), eps
