"""Rotations and translations: the worst of a grid, or of random draws.

Nothing is added to an image: it is turned about its centre by up to `max_angle`
degrees and then moved by up to `max_shift` pixels along either axis, read by
bilinear interpolation. What moves in from outside is black: the lower end of
the bounds. A change of this kind has no norm to speak of, so there is no ball.

A step asks the model about one candidate, for its outputs alone. The first is
the clean image. A row is done with the first candidate that meets the
criterion, and otherwise keeps the one of highest loss; `criteria.never` goes on
to the worst of all. Inputs are images [H, W, C] of any size.

Reference: Engstrom, Tran, Tsipras, Schmidt, Madry, "Exploring the landscape of
spatial robustness", 2019.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxadv import checks, criteria, losses, numerics, oracles, types
from jaxadv.attacks import warping

Array = jax.Array
Bounds = tuple[types.Scalar, types.Scalar]
Partial = jax.tree_util.Partial


class State(NamedTuple):
  """The rows of a spatial attack (see `types.State`)."""

  x: Array
  y: types.PyTree
  keys: Array
  step: Array  # Candidates tried.
  best: Array  # The loss at `x_adv`; -inf before the first query.
  x_adv: Array
  found: Array
  done: Array


def spatial_grid(
  *,
  max_angle: types.Scalar = 30.0,
  max_shift: types.Scalar = 3.0,
  num_angles: int = 31,
  num_shifts: int = 5,
  loss_fn: types.LossFn = losses.cross_entropy,
  criterion: types.Criterion = criteria.misclassified,
  bounds: Bounds = (0.0, 1.0),
) -> types.Attack:
  """Tries all rotations and translations of a grid, from its middle outwards.

  The defaults are the authors' for CIFAR-10 and MNIST-sized images: 31 angles
  and 5 x 5 translations, 775 queries, the strongest attack of their paper.

  Args:
    max_angle: In degrees, either way.
    max_shift: In pixels, along either axis and either way.
    num_angles: Angles, evenly spaced; odd, so that 0 is among them.
    num_shifts: Offsets along each axis, evenly spaced; odd likewise.
    loss_fn: Ranks the candidates.
    criterion: When a row stops.
    bounds: The range of inputs.

  Raises:
    TypeError: a number of values is not an integer.
    ValueError: it is below 1 or even, a bound is negative, the bounds are not a
      range, or the inputs are not images.

  Reference: see the module.
  """
  for name, count in (("num_angles", num_angles), ("num_shifts", num_shifts)):
    checks.num_steps(count, name)
    if count % 2 == 0:
      raise ValueError(
        f"{name} must be odd, so that the grid holds the clean image, got "
        f"{name}={count!r}"
      )
  return _attack(
    Partial(_on_grid, num_angles, num_shifts),
    num_angles * num_shifts**2,
    (max_angle, max_shift),
    loss_fn,
    criterion,
    bounds,
  )


def spatial_random(
  *,
  max_angle: types.Scalar = 30.0,
  max_shift: types.Scalar = 3.0,
  num_samples: int = 10,
  loss_fn: types.LossFn = losses.cross_entropy,
  criterion: types.Criterion = criteria.misclassified,
  bounds: Bounds = (0.0, 1.0),
) -> types.Attack:
  """Tries random rotations and translations: "worst of k".

  Angle and both offsets are uniform. 10 draws are the authors' default; with
  the clean image that is a query more.

  Args:
    max_angle: In degrees, either way.
    max_shift: In pixels, along either axis and either way.
    num_samples: Draws.
    loss_fn: Ranks the candidates.
    criterion: When a row stops.
    bounds: The range of inputs.

  Raises:
    TypeError: `num_samples` is not an integer.
    ValueError: `num_samples` is below 1, a bound is negative, the bounds are
      not a range, or the inputs are not images.

  Reference: see the module.
  """
  checks.num_steps(num_samples, "num_samples")
  return _attack(
    Partial(_drawn),
    1 + num_samples,
    (max_angle, max_shift),
    loss_fn,
    criterion,
    bounds,
  )


def _attack(
  candidate, num_steps, limits, loss_fn, criterion, bounds
) -> types.Attack:
  checks.non_negative("max_angle", limits[0])
  checks.non_negative("max_shift", limits[1])
  checks.bounds(bounds)
  return types.Attack(
    init=Partial(_init),
    step=Partial(
      _step,
      candidate,
      limits,
      bounds,
      types.hashable(loss_fn),
      types.hashable(criterion),
    ),
    num_steps=num_steps,
    threat=types.threat(None, bounds, criterion),
    forwards=1,
    backwards=0,
  )


def _init(keys, x, y) -> State:
  checks.images(x)
  rows = jnp.zeros(len(x), bool)
  return State(
    x=x,
    y=y,
    keys=keys,
    step=jnp.zeros(len(x), jnp.int32),
    best=jnp.full(len(x), -jnp.inf, numerics.wide_type(x)),
    x_adv=x,
    found=rows,
    done=rows,
  )


def _step(
  candidate, limits, bounds, loss_fn, criterion, logits_fn, state
) -> tuple[State, types.PyTree]:
  def move(key, step, image):
    shares = candidate(key, step)
    angle, (down, right) = limits[0] * shares[0], limits[1] * shares[1:]
    moved = warping.rotate_and_shift(image, angle, down, right, bounds[0])
    return jnp.clip(moved, *bounds)

  own = oracles.own_keys(state.keys, state.step)
  x_new = jax.vmap(move)(own, state.step, state.x)
  keys = oracles.step_keys(state.keys, state.step)
  outputs = oracles.outputs(logits_fn, keys, x_new)
  loss = oracles.loss(loss_fn, outputs, state.y).astype(state.best.dtype)
  found = oracles.satisfied(criterion, outputs, state.y)
  better = (loss > state.best) | found
  state = state._replace(
    step=state.step + 1,
    best=jnp.where(better, loss, state.best),
    x_adv=oracles.choose(better, x_new, state.x_adv),
    found=found,
    done=found,
  )
  return state, outputs


def _on_grid(num_angles, num_shifts, key, step) -> Array:
  """Angle and offsets of a place in the grid, as shares of their limits."""
  del key
  return jnp.stack(
    [
      _outwards(step % num_angles, num_angles),
      _outwards(step // num_angles // num_shifts, num_shifts),
      _outwards(step // num_angles % num_shifts, num_shifts),
    ]
  )


def _outwards(place, count) -> Array:
  """The place-th of `count` evenly spaced values: 0, a, -a, 2a, ..., 1, -1."""
  side = jnp.where(place % 2 == 1, 1, -1)
  return side * ((place + 1) // 2) / jnp.maximum(count // 2, 1)


def _drawn(key, step) -> Array:
  """Uniform in [-1, 1]; the clean image in the first step."""
  return jnp.where(step > 0, jax.random.uniform(key, (3,), minval=-1), 0.0)
