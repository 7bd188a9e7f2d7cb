"""Auto-PGD for L1 balls, whose steps adapt their sparsity."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxadv import balls, checks, criteria, losses, oracles, types

Array = jax.Array
Partial = jax.tree_util.Partial
Bounds = tuple[types.Scalar, types.Scalar]

# The radii of the stages are 3 eps, 2 eps and eps.
_STAGES = 3
# Steps move one coordinate for every 1.5 that the best point changes.
_SPARSER = 1.5
# The step size shrinks by this factor, down to this share of the radius.
_SHRINK = 1.5
_SMALLEST = 0.1


class State(NamedTuple):
  """The rows of an L1 Auto-PGD (see `types.State`)."""

  x: Array
  y: types.PyTree
  keys: Array
  step: Array  # Points evaluated.
  stage: Array
  age: Array  # Steps of this stage; its start is number 0.
  point: Array  # Where the model is asked next.
  step_size: Array
  support: Array  # Coordinates the best point changed at the last checkpoint.
  best: Array  # The point of highest loss in this stage.
  best_loss: Array
  best_grad: Array
  x_adv: Array  # `best` in the last stage, the clean input before it.
  found: Array
  done: Array


def auto_pgd_l1(
  eps: types.Scalar,
  *,
  num_steps: int = 100,
  loss_fn: types.LossFn = losses.cross_entropy,
  criterion: types.Criterion = criteria.misclassified,
  bounds: Bounds = (0.0, 1.0),
) -> types.Attack:
  """Auto-PGD for the L1 ball: sparse steps, from larger radii inwards.

  `x <- P(x + step_size * s / ||s||_1)`, with s the signs of the k largest
  gradient entries and P the exact projection onto ball and bounds. With n
  steps, `ceil(0.3 n)` of them are taken in the ball of 3 eps, as many in that
  of 2 eps and the rest in that of eps. A stage starts with step size and radius
  alike from the best point of the one before, projected; the first from
  Gaussian noise, projected.

  After every `max(int(0.04 m), 1)` of a stage's m steps: k is 1 / 1.5 of the
  number of coordinates that the point of highest loss changes. Where that
  number fell below 0.95 of its last value, the step size is the radius again
  and the attack returns to that point; elsewhere the step size is divided by
  1.5, down to a tenth of the radius.

  A row is done at the first point of the last stage that meets the criterion;
  points of larger radius are no successes. With `criteria.never` the result is
  the point of highest loss in the last stage. Every stage evaluates its start,
  so the attack makes n + 3 oracle calls (103 gradients by default).

  Args:
    eps: The radius.
    num_steps: Steps after the starts, of all stages. 100 is AutoAttack's.
    loss_fn: What to maximise.
    criterion: When a row stops.
    bounds: The range of inputs.

  Raises:
    TypeError: `num_steps` is not an integer.
    ValueError: `num_steps` is below 1, `eps` is negative or the bounds are not
      a range.

  Reference: Croce, Hein, "Mind the box: l1-APGD for sparse adversarial attacks
  on image classifiers", 2021.
  """
  checks.num_steps(num_steps)
  checks.bounds(bounds)
  ball = balls.L1(eps)
  return types.Attack(
    init=Partial(_init, ball, bounds),
    step=Partial(
      _step,
      ball,
      bounds,
      num_steps,
      types.hashable(loss_fn),
      types.hashable(criterion),
    ),
    num_steps=num_steps + _STAGES,
    threat=types.threat(ball, bounds, criterion),
  )


def _init(ball, bounds, keys, x, y) -> State:
  zero = jnp.zeros(len(x), jnp.int32)
  radius = _radius(ball, zero).astype(x.dtype)
  noise = jax.vmap(lambda key, x: jax.random.normal(key, x.shape, x.dtype))
  inside = functools.partial(_inside, bounds)
  start = jax.vmap(inside)(radius, x, noise(oracles.start_keys(keys), x))
  return State(
    x=x,
    y=y,
    keys=keys,
    step=zero,
    stage=zero,
    age=zero,
    point=start,
    step_size=radius,
    support=jax.vmap(_support)(start, x),
    best=start,
    best_loss=jnp.full(
      len(x), -jnp.inf, jnp.promote_types(x.dtype, jnp.float32)
    ),
    best_grad=jnp.zeros_like(x),
    x_adv=x,
    found=zero > 0,
    done=zero > 0,
  )


def _step(
  ball, bounds, num_steps, loss_fn, criterion, logits_fn, state
) -> tuple[State, types.PyTree]:
  keys = oracles.step_keys(state.keys, state.step)
  answer = oracles.loss_and_gradient(
    logits_fn, loss_fn, keys, state.point, state.y
  )
  last = state.stage == _STAGES - 1
  found = oracles.satisfied(criterion, answer.outputs, state.y) & last
  advance = functools.partial(_advance, ball, bounds, num_steps)
  loss = answer.loss.astype(state.best_loss.dtype)
  changes = jax.vmap(advance)(state, loss, answer.grad)
  result = oracles.choose(found, state.point, changes["best"])
  state = state._replace(
    **changes,
    step=state.step + 1,
    x_adv=oracles.choose(last, result, state.x_adv),
    found=found,
    done=found,
  )
  return state, answer.outputs


def _advance(
  ball, bounds, num_steps, state: State, loss, grad
) -> dict[str, Any]:
  """Takes in the answer for ONE row's point; what changes in its state."""
  better = loss > state.best_loss
  best = jnp.where(better, state.point, state.best)
  best_loss = jnp.where(better, loss, state.best_loss)
  best_grad = jnp.where(better, grad, state.best_grad)
  length = _length(num_steps, state.stage)
  due = (state.age > 0) & (state.age % jnp.maximum(4 * length // 100, 1) == 0)
  support = jnp.where(due, _support(best, state.x), state.support)
  # Below 0.95 of the last value, in whole numbers.
  sparser = due & (20 * support < 19 * state.support)
  radius = _radius(ball, state.stage)
  shrunk = jnp.where(due, state.step_size / _SHRINK, state.step_size)
  step_size = jnp.where(
    sparser, radius, jnp.maximum(shrunk, _SMALLEST * radius)
  )
  point = jnp.where(sparser, best, state.point)
  direction = _steepest(jnp.where(sparser, best_grad, grad), support)
  ended = (state.age >= length) & (state.stage < _STAGES - 1)
  stage = state.stage + ended
  radius = _radius(ball, stage)
  point = jnp.where(ended, best, point + step_size * direction)
  point = _inside(bounds, radius, state.x, point - state.x)
  return {
    "stage": stage,
    "age": jnp.where(ended, 0, state.age + 1),
    "point": point,
    "step_size": jnp.where(ended, radius, step_size).astype(point.dtype),
    "support": jnp.where(ended, _support(point, state.x), support),
    "best": jnp.where(ended, point, best),
    "best_loss": jnp.where(ended, -jnp.inf, best_loss),
    "best_grad": best_grad,
  }


def _length(num_steps, stage: Array) -> Array:
  """The steps of a stage: 0.3, 0.3 and the rest, rounded up in turn."""
  third = -(-3 * num_steps // 10)
  start = jnp.minimum(third * stage, num_steps)
  end = jnp.minimum(third * (stage + 1), num_steps)
  return jnp.where(stage < _STAGES - 1, end, num_steps) - start


def _radius(ball, stage: Array) -> Array:
  return ball.eps * (_STAGES - stage)


def _support(point: Array, x: Array) -> Array:
  """The number of coordinates that differ."""
  return jnp.sum(point != x, dtype=jnp.int32)


def _steepest(grad: Array, support: Array) -> Array:
  """Equal steps along the largest entries, one for every 1.5 of `support`."""
  k = jnp.maximum(jnp.ceil(support / _SPARSER), 1)
  # Half a coordinate less keeps rounding from adding one.
  return balls.L1(1.0, top_fraction=(k - 0.5) / grad.size).steepest(grad)


def _inside(bounds, radius, x: Array, delta: Array) -> Array:
  low, high = bounds
  delta = balls.L1(radius).project_box(delta, low - x, high - x)
  return jnp.clip(x + delta, low, high)
