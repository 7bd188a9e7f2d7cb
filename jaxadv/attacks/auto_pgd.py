"""Auto-PGD: projected gradient ascent whose step size adapts by itself."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxadv import checks, criteria, losses, oracles, types

Array = jax.Array
Partial = jax.tree_util.Partial
Bounds = tuple[types.Scalar, types.Scalar]

# The share of the new direction in a step; the rest is momentum.
_NEW = 0.75


class State(NamedTuple):
  """The rows of an Auto-PGD (see `types.State`)."""

  x: Array
  y: types.PyTree
  keys: Array
  step: Array  # Points evaluated; the start is number 0.
  point: Array  # Where the model is asked next.
  previous: Array  # The point before it.
  loss: Array  # The loss there.
  step_size: Array
  checkpoint: Array  # The step that ends the period under way.
  period: Array  # Its length in steps.
  rises: Array  # Steps of the period that raised the loss.
  halved: Array  # Whether the last checkpoint halved the step size.
  checked_loss: Array  # `best_loss` at the last checkpoint.
  best_loss: Array  # The loss at `x_adv`.
  best_grad: Array  # Its gradient there.
  x_adv: Array
  found: Array
  done: Array


def auto_pgd(
  ball: types.Ball,
  *,
  num_steps: int = 100,
  rho: types.Scalar = 0.75,
  loss_fn: types.LossFn = losses.cross_entropy,
  criterion: types.Criterion = criteria.misclassified,
  bounds: Bounds = (0.0, 1.0),
) -> types.Attack:
  """Auto-PGD: momentum, and a step size that halves when progress stalls.

  From a random point on the surface of the ball, with P the projection onto
  ball and bounds and `a = 0.75` (1 in the first step):

    z  <- P(x_k + step_size * steepest(grad L(x_k)))
    x_k+1 <- P(x_k + a * (z - x_k) + (1 - a) * (x_k - x_k-1))

  `step_size` starts at 2 eps. The checkpoints end periods of
  `max(int(0.22 n), 1)` steps, each period `max(int(0.03 n), 1)` shorter than
  the one before but never below `max(int(0.06 n), 1)`, for `n = num_steps`. A
  checkpoint halves the step size and returns to the best point and its gradient
  where at most `rho` of the period's steps raised the loss, or where the
  previous checkpoint did not halve and the best loss has not grown since.

  A row is done at the first point that meets the criterion. With
  `criteria.never` it maximises the loss: the result is the point of highest
  loss among all that were evaluated. Those are the start and n more, so the
  attack makes n + 1 oracle calls (101 gradients by default).

  The members of AutoAttack are products of parts:

    auto_pgd(ball)                                        # APGD-CE
    auto_pgd(ball, loss_fn=losses.dlr)                    # APGD-DLR
    multi_targeted(auto_pgd(ball, loss_fn=losses.targeted_dlr,
                            criterion=criteria.misclassified_pair))  # APGD-T

  In the first period the reference code compares the loss of the first point
  with 0 where the paper compares it with that of the start; this is the paper's
  rule. The two differ only in losses that can be negative. For L1 balls there
  is `auto_pgd_l1`.

  Args:
    ball: The perturbation set, Linf or L2 in the paper.
    num_steps: Steps after the start. 100 is AutoAttack's.
    rho: The share of rising steps below which the step size halves. 0.75 is the
      paper's.
    loss_fn: What to maximise.
    criterion: When a row stops.
    bounds: The range of inputs.

  Raises:
    TypeError: `num_steps` is not an integer.
    ValueError: `num_steps` is below 1, `rho` is negative or the bounds are not
      a range.

  Reference: Croce, Hein, "Reliable evaluation of adversarial robustness with an
  ensemble of diverse parameter-free attacks", 2020.
  """
  checks.num_steps(num_steps)
  checks.non_negative("rho", rho)
  checks.bounds(bounds)
  return types.Attack(
    init=Partial(_init, ball, bounds, num_steps),
    step=Partial(
      _step,
      ball,
      bounds,
      num_steps,
      rho,
      types.hashable(loss_fn),
      types.hashable(criterion),
    ),
    num_steps=num_steps + 1,
  )


def _init(ball, bounds, num_steps, keys, x, y) -> State:
  start = jax.vmap(functools.partial(_start, ball, bounds))(keys, x)
  no = jnp.zeros(len(x), bool)
  zero = jnp.zeros(len(x), jnp.int32)
  lowest = jnp.full(len(x), -jnp.inf, jnp.promote_types(x.dtype, jnp.float32))
  period = zero + jnp.maximum(22 * num_steps // 100, 1)
  return State(
    x=x,
    y=y,
    keys=keys,
    step=zero,
    point=start,
    previous=start,
    loss=-lowest,
    step_size=jnp.full(len(x), 2 * ball.eps, x.dtype),
    checkpoint=period,
    period=period,
    rises=zero,
    # The second condition cannot hold at the first checkpoint.
    halved=~no,
    checked_loss=lowest,
    best_loss=lowest,
    best_grad=jnp.zeros_like(x),
    x_adv=start,
    found=no,
    done=no,
  )


def _start(ball, bounds, key, x: Array) -> Array:
  """A random point on the surface of the ball, clipped to the bounds."""
  delta = ball.sample(key, x)
  size = ball.norm(delta)
  scale = jnp.where(size > 0, ball.eps / jnp.where(size > 0, size, 1.0), 0.0)
  return _inside(ball, bounds, x, x + scale * delta)


def _step(
  ball, bounds, num_steps, rho, loss_fn, criterion, logits_fn, state
) -> State:
  keys = oracles.step_keys(state.keys, state.step)
  answer = oracles.loss_and_gradient(
    logits_fn, loss_fn, keys, state.point, state.y
  )
  found = oracles.satisfied(criterion, answer.outputs, state.y)
  advance = functools.partial(_advance, ball, bounds, num_steps, rho)
  loss = answer.loss.astype(state.loss.dtype)
  changes = jax.vmap(advance)(state, loss, answer.grad)
  changes["x_adv"] = oracles.choose(found, state.point, changes["x_adv"])
  return state._replace(
    **changes, step=state.step + 1, loss=loss, found=found, done=found
  )


def _advance(
  ball, bounds, num_steps, rho, state: State, loss, grad
) -> dict[str, Any]:
  """Takes in the answer for ONE row's point; what changes in its state."""
  better = loss > state.best_loss
  best = jnp.where(better, state.point, state.x_adv)
  best_grad = jnp.where(better, grad, state.best_grad)
  best_loss = jnp.where(better, loss, state.best_loss)
  rises = state.rises + (loss > state.loss)
  ends = state.step == state.checkpoint
  stalled = rises <= rho * state.period
  stuck = ~state.halved & (state.checked_loss >= best_loss)
  halve = ends & (stalled | stuck)
  step_size = jnp.where(halve, state.step_size / 2, state.step_size)
  point = jnp.where(halve, best, state.point)
  grad = jnp.where(halve, best_grad, grad)
  shorter = jnp.maximum(
    state.period - jnp.maximum(3 * num_steps // 100, 1),
    jnp.maximum(6 * num_steps // 100, 1),
  )
  period = jnp.where(ends, shorter, state.period)
  new = jnp.where(state.step > 0, _NEW, 1.0)
  uphill = point + step_size * ball.steepest(grad)
  towards = _inside(ball, bounds, state.x, uphill) - point
  moved = point + new * towards + (1 - new) * (point - state.previous)
  return {
    "point": _inside(ball, bounds, state.x, moved),
    "previous": point,
    "step_size": step_size,
    "checkpoint": state.checkpoint + jnp.where(ends, period, 0),
    "period": period,
    "rises": jnp.where(ends, 0, rises),
    "halved": jnp.where(ends, halve, state.halved),
    "checked_loss": jnp.where(ends, best_loss, state.checked_loss),
    "best_loss": best_loss,
    "best_grad": best_grad,
    "x_adv": best,
  }


def _inside(ball, bounds, x: Array, point: Array) -> Array:
  low, high = bounds
  delta = ball.project_box(point - x, low - x, high - x)
  return jnp.clip(x + delta, low, high)
