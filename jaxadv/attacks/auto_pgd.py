"""Auto-PGD: projected gradient ascent whose step size adapts by itself."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxadv import checks, criteria, losses, oracles, types
from jaxadv.attacks import ascent, checkpoints

Array = jax.Array
Partial = jax.tree_util.Partial

# The share of the new direction in a step; the rest is momentum.
_NEW = 0.75


class State(NamedTuple):
  """The rows of an Auto-PGD (see `types.State`, `checkpoints`)."""

  x: Array
  y: types.PyTree
  keys: Array
  step: Array  # Points evaluated; the start is number 0.
  point: Array  # Where the model is asked next.
  previous: Array  # The point before it.
  loss: Array  # The loss there.
  step_size: Array
  checkpoint: Array
  period: Array
  rises: Array
  halved: Array
  checked_loss: Array
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
  bounds: ascent.Bounds = (0.0, 1.0),
) -> types.Attack:
  """Auto-PGD: momentum, and a step size that halves when progress stalls.

  From a random point on the surface of the ball, with P the projection onto
  ball and bounds and `a = 0.75` (1 in the first step):

    z  <- P(x_k + step_size * steepest(grad L(x_k)))
    x_k+1 <- P(x_k + a * (z - x_k) + (1 - a) * (x_k - x_k-1))

  `step_size` starts at 2 eps and halves where progress stalls, by the rule of
  `attacks.checkpoints`; then the search returns to the best point and its
  gradient.

  A row is done at the first point that meets the criterion. With
  `criteria.never` it maximises the loss: the result is the point of highest
  loss among all that were evaluated. Those are the start and n more, so the
  attack makes n + 1 oracle calls (101 gradients by default).

  The members of AutoAttack are products of parts:

    auto_pgd(ball)                                        # APGD-CE
    auto_pgd(ball, loss_fn=losses.dlr)                    # APGD-DLR
    multi_targeted(auto_pgd(ball, loss_fn=losses.targeted_dlr,
                            criterion=criteria.misclassified_pair))  # APGD-T

  For L1 balls there is `auto_pgd_l1`.

  Args:
    ball: The perturbation set, Linf or L2 in the paper.
    num_steps: Steps after the start. 100 is AutoAttack's.
    rho: The share of rising steps below which the step size halves. 0.75 is the
      paper's.
    loss_fn: What to maximise.
    criterion: When a row stops.
    bounds: The range of inputs.

  Raises:
    TypeError: `ball` is none or `num_steps` is not an integer.
    ValueError: `num_steps` is below 1, `rho` is negative or the bounds are not
      a range.

  Reference: Croce, Hein, "Reliable evaluation of adversarial robustness with an
  ensemble of diverse parameter-free attacks", 2020.
  """
  checks.ball(ball)
  checks.num_steps(num_steps)
  checks.non_negative("rho", rho)
  checks.bounds(bounds)
  return types.Attack(
    init=Partial(_init, ball, bounds, num_steps),
    step=Partial(
      checkpoints.step,
      Partial(_advance, ball, bounds, num_steps, rho),
      types.hashable(loss_fn),
      types.hashable(criterion),
    ),
    num_steps=num_steps + 1,
    threat=types.threat(ball, bounds, criterion),
  )


def _init(ball, bounds, num_steps, keys, x, y) -> State:
  start = jax.vmap(functools.partial(_start, ball, bounds))(
    oracles.start_keys(keys), x
  )
  return State(
    **checkpoints.start(x, start, num_steps, 2 * ball.eps),
    y=y,
    keys=keys,
    previous=start,
    best_grad=jnp.zeros_like(x),
  )


def _start(ball, bounds, key, x: Array) -> Array:
  """A random point on the surface of the ball, clipped to the bounds."""
  delta = ball.sample(key, x)
  size = ball.norm(delta)
  scale = jnp.where(size > 0, ball.eps / jnp.where(size > 0, size, 1.0), 0.0)
  return ascent.inside(ball, bounds, x, scale * delta)


def _advance(
  ball, bounds, num_steps, rho, state: State, loss, grad
) -> dict[str, Any]:
  """Takes in the answer for ONE row's point; what changes in its state."""
  better = loss > state.best_loss
  best = jnp.where(better, state.point, state.x_adv)
  best_grad = jnp.where(better, grad, state.best_grad)
  halve, progress = checkpoints.look(state, num_steps, rho, loss)
  point = jnp.where(halve, best, state.point)
  grad = jnp.where(halve, best_grad, grad)
  new = jnp.where(state.step > 0, _NEW, 1.0)
  inside = functools.partial(ascent.inside, ball, bounds, state.x)
  uphill = point + progress["step_size"] * ball.steepest(grad)
  towards = inside(uphill - state.x) - point
  moved = point + new * towards + (1 - new) * (point - state.previous)
  return progress | {
    "point": inside(moved - state.x),
    "previous": point,
    "best_grad": best_grad,
    "x_adv": best,
  }
