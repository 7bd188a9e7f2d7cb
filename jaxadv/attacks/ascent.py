"""Projected gradient ascent: the one kernel behind the gradient family.

A step asks for the loss and its gradient at the current point, hands the
gradient to an optax transformation and projects what comes out onto the ball
and the bounds. Named attacks (`attacks.gradient`) are choices of its parts:
ball x loss x criterion x step rule x start.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxadv import checks, criteria, losses, oracles, types

Array = jax.Array
Bounds = tuple[types.Scalar, types.Scalar]
# Pytrees, so that their numbers are leaves: a rule makes the optax
# transformation of one example, a start its first perturbation.
Rule = Callable[[], optax.GradientTransformation]
Start = Callable[[Array, Array, types.Ball, Bounds], Array]
# From a row's optimiser state to the shift at which the gradient is taken.
Lookahead = Callable[[Any], Array]


class State(NamedTuple):
  """The rows of a projected gradient ascent (see `types.State`)."""

  x: Array
  y: types.PyTree
  keys: Array
  step: Array  # Steps taken.
  x_adv: Array
  found: Array
  done: Array
  opt_state: Any


def projected_gradient(
  ball: types.Ball,
  optimizer: optax.GradientTransformation | Rule,
  *,
  num_steps: int,
  start: Start | None = None,
  lookahead: Lookahead | None = None,
  loss_fn: types.LossFn = losses.cross_entropy,
  criterion: types.Criterion = criteria.misclassified,
  bounds: Bounds = (0.0, 1.0),
) -> types.Attack:
  """Gradient ascent on `loss_fn` by any optax step rule, projected.

  `x <- x0 + P(x + u - x0)`, with u what `optimizer` makes of the descent
  gradient (minus the gradient of the loss: optax minimises) and P the
  projection onto ball and bounds. The optimiser's parameters are the
  perturbation x - x0, so weight decay pulls towards the clean input. A row is
  done when the criterion holds at its point; the last point is not asked about,
  so k steps cost k gradients.

  Args:
    ball: The perturbation set.
    optimizer: An optax transformation, applied to each example on its own, or a
      pytree that makes one when called (its numbers are then leaves).
    num_steps: Gradients per row.
    start: The first perturbation; none by default.
    lookahead: Where to take the gradient, relative to the point (Nesterov).
    loss_fn: What to maximise.
    criterion: When to stop; `criteria.never` uses the whole budget.
    bounds: The range of inputs.

  Raises:
    TypeError: `ball` is none or `num_steps` is not an integer.
    ValueError: `num_steps` is below 1 or the bounds are not a range.
  """
  checks.ball(ball)
  checks.num_steps(num_steps)
  checks.bounds(bounds)
  if isinstance(optimizer, optax.GradientTransformation):
    optimizer = types.Static(_Fixed(optimizer))
  parts = (types.hashable(optimizer), ball, bounds)
  start = types.hashable(at_input if start is None else start)
  partial = jax.tree_util.Partial
  return types.Attack(
    init=partial(_init, *parts, start),
    step=partial(
      _step,
      *parts,
      None if lookahead is None else types.hashable(lookahead),
      types.hashable(loss_fn),
      types.hashable(criterion),
    ),
    num_steps=num_steps,
    threat=types.threat(ball, bounds, criterion),
  )


@dataclasses.dataclass(frozen=True)
class _Fixed:
  optimizer: optax.GradientTransformation

  def __call__(self) -> optax.GradientTransformation:
    return self.optimizer


def _init(rule, ball, bounds, start, keys, x, y) -> State:
  draw = jax.vmap(lambda key, x: start(key, x, ball, bounds))
  delta = draw(oracles.start_keys(keys), x)
  rows = jnp.zeros(x.shape[0], bool)
  return State(
    x=x,
    y=y,
    keys=keys,
    step=jnp.zeros(x.shape[0], jnp.int32),
    x_adv=_project(ball, bounds, x, delta),
    found=rows,
    done=rows,
    opt_state=jax.vmap(rule().init)(jnp.zeros_like(x)),
  )


def _step(
  rule, ball, bounds, lookahead, loss_fn, criterion, logits_fn, state
) -> tuple[State, types.PyTree]:
  point = state.x_adv
  if lookahead is not None:
    shift = jax.vmap(lookahead)(state.opt_state)
    point = _project(ball, bounds, state.x, point + shift - state.x)
  keys = oracles.step_keys(state.keys, state.step)
  answer = oracles.loss_and_gradient(logits_fn, loss_fn, keys, point, state.y)
  found = oracles.satisfied(criterion, answer.outputs, state.y)
  delta = state.x_adv - state.x
  updates, opt_state = jax.vmap(rule().update)(
    -answer.grad, state.opt_state, delta
  )
  moved = _project(ball, bounds, state.x, delta + updates)
  state = state._replace(
    step=state.step + 1,
    x_adv=oracles.choose(found, point, moved),
    found=found,
    done=found,
    opt_state=opt_state,
  )
  return state, answer.outputs


def _project(ball, bounds, x: Array, delta: Array) -> Array:
  return jax.vmap(functools.partial(inside, ball, bounds))(x, delta)


def inside(ball: types.Ball, bounds: Bounds, x: Array, delta: Array) -> Array:
  """ONE example, perturbed by what ball and bounds leave of `delta`."""
  low, high = bounds
  delta = ball.project_box(delta, low - x, high - x)
  return jnp.clip(x + delta, low, high).astype(x.dtype)


def at_input(key, x: Array, ball: types.Ball, bounds: Bounds) -> Array:
  """Starts at the clean input."""
  del key, ball, bounds
  return jnp.zeros_like(x)


def at_centre(key, x: Array, ball: types.Ball, bounds: Bounds) -> Array:
  """Starts amid the values that eps and the bounds leave each coordinate."""
  del key
  low, high = bounds
  least = jnp.maximum(x - ball.eps, low)
  return (least + jnp.minimum(x + ball.eps, high)) / 2 - x


def in_ball(key, x: Array, ball: types.Ball, bounds: Bounds) -> Array:
  """Starts at a point drawn uniformly from the ball (Madry et al., 2018)."""
  del bounds
  return ball.sample(key, x)


def in_bounds(key, x: Array, ball: types.Ball, bounds: Bounds) -> Array:
  """Starts at an input drawn uniformly from the bounds."""
  del ball
  low, high = bounds
  noise = jax.random.uniform(key, x.shape, x.dtype)
  return low + (high - low) * noise - x


def steepest(ball: types.Ball) -> optax.GradientTransformation:
  """Replaces an update by the ball's direction of steepest change."""
  return optax.stateless(
    lambda updates, params: jax.tree.map(ball.steepest, updates)
  )


def normalise_l1() -> optax.GradientTransformation:
  """Divides an update by its own L1 norm; zero stays zero."""

  def normalise(update: Array) -> Array:
    norm = jnp.sum(jnp.abs(update))
    return update / jnp.where(norm > 0, norm, 1.0)

  return optax.stateless(lambda updates, params: normalise(updates))
