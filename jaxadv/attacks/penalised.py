"""What attacks that minimise a penalised objective share.

Success with a confidence; and the space of arctanh, in which every point is
inside the bounds, with Adam to walk in it. A point there is called hidden.
"""

import jax
import jax.numpy as jnp
import optax

from jaxadv import checks, numerics, oracles, types

Array = jax.Array
Bounds = tuple[types.Scalar, types.Scalar]

# The authors' factor: arctanh is infinite at the bounds, and a pixel clipped to
# them exactly would have no gradient and never move.
_INSIDE = 0.999999


def wins(
  criterion: types.Criterion,
  confidence: types.Scalar,
  answer: oracles.Answer,
  y: types.PyTree,
) -> Array:
  """Whether each row has won with the confidence asked for."""
  # A margin may round to the wrong side of a tie that the criterion decides.
  confident = (answer.loss >= confidence) | (jnp.asarray(confidence) == 0)
  return oracles.satisfied(criterion, answer.outputs, y) & confident


def shortfall(confidence: types.Scalar, answer: oracles.Answer) -> Array:
  """What each row's loss lacks of the confidence, in float32 at least."""
  loss = answer.loss.astype(numerics.wide_type(answer.loss))
  return jnp.maximum(confidence - loss, 0.0)


def pull(c: Array, answer: oracles.Answer) -> Array:
  """The gradient of each row's `c * loss`, in float32 at least."""
  grad = answer.grad.astype(numerics.wide_type(answer.grad))
  return jax.vmap(jnp.multiply)(c, grad)


def perturbation(x: Array, point: Array) -> Array:
  """From x to the point, in float32 at least."""
  dtype = numerics.wide_type(x)
  return point.astype(dtype) - x.astype(dtype)


def to_hidden(bounds: Bounds, x: Array) -> Array:
  """The arctanh of inputs, finite at the bounds, in float32 at least."""
  middle, half = (bounds[1] + bounds[0]) / 2, (bounds[1] - bounds[0]) / 2
  return jnp.arctanh(
    _INSIDE * (x.astype(numerics.wide_type(x)) - middle) / half
  )


def from_hidden(bounds: Bounds, hidden: Array) -> tuple[Array, Array]:
  """The input of a hidden point, and its derivative in it.

  Half the width times `tanh(hidden)`, and the middle: written as a logistic
  function, since 1 - tanh^2 of a pixel near the bounds has few digits in
  float32, and most pixels of MNIST are there. With tanh the attack ends 0.6 %
  further away.
  """
  low, high = bounds
  small = jnp.exp(-2 * jnp.abs(hidden))
  share = jnp.where(hidden > 0, 1.0, small) / (1 + small)
  x = jnp.clip(low + (high - low) * share, low, high)
  return x, 2 * (high - low) * small / jnp.square(1 + small)


def start_optimizer(hidden: Array) -> optax.OptState:
  """Adam's state before its first step; it knows no learning rate."""
  return jax.vmap(optax.adam(0.0).init)(hidden)


def descend(
  learning_rate: types.Scalar,
  grad: Array,
  hidden: Array,
  optimizer: optax.OptState,
) -> tuple[Array, optax.OptState]:
  """One step of Adam in each row."""
  update = jax.vmap(optax.adam(learning_rate).update)
  updates, optimizer = update(grad, optimizer)
  return hidden + updates, optimizer


def check_range(c_range: tuple[types.Scalar, types.Scalar]) -> None:
  """Refuses ranges of c that are not `(first, largest)`, both positive."""
  if not isinstance(c_range, tuple) or len(c_range) != 2:
    raise ValueError(
      f"c_range must be a pair (first, largest), got c_range={c_range!r}"
    )
  first, largest = c_range
  checks.positive("c_range[0]", first)
  checks.non_negative("c_range[1] - c_range[0]", largest - first)
