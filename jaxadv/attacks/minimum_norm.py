"""What minimum-norm attacks have in common.

Their states hold, beside the fields of `types.State`, `x`, the number of the
`step`, and `distance` [B]: that of `x_adv`, infinite while none was found.
Attacks by gradient steps also have the `point` to ask the model about next.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxadv import numerics, oracles, types

Array = jax.Array
Bounds = tuple[types.Scalar, types.Scalar]


def start(x: Array) -> dict[str, Array]:
  """The fields of the states before the first step, but for `point`."""
  rows = jnp.zeros(x.shape[0], bool)
  return {
    "x": x,
    "step": jnp.zeros(x.shape[0], jnp.int32),
    "distance": jnp.full(x.shape[0], jnp.inf, numerics.wide_type(x)),
    "x_adv": x,
    "found": rows,
    "done": rows,
  }


def keep_nearest(state: Any, point: Array, won: Array, distance: Array) -> Any:
  """Takes in which of the points won, and how far away they are."""
  nearer = won & (distance < state.distance)
  return state._replace(
    step=state.step + 1,
    distance=jnp.where(nearer, distance, state.distance),
    x_adv=oracles.choose(nearer, point, state.x_adv),
    found=state.found | won,
  )


def finish_step(state: Any, norm: Callable[[Array], Array], won: Array) -> Any:
  """`keep_nearest` of `state.point`; nothing beats a distance of zero."""
  size = jax.vmap(norm)(perturbation(state))
  state = keep_nearest(state, state.point, won, size)
  return state._replace(done=state.distance <= 0)


def perturbation(state: Any) -> Array:
  """The perturbations of the points, in float32 at least."""
  dtype = numerics.wide_type(state.x)
  return state.point.astype(dtype) - state.x.astype(dtype)


def inside(x: Array, delta: Array, bounds: Bounds) -> Array:
  """The perturbed input, clipped to the bounds, in the type of the input."""
  return jnp.clip(x + delta, *bounds).astype(x.dtype)


def room(x: Array, bounds: Bounds) -> Array:
  """How far each coordinate can move: the largest of all perturbations."""
  low, high = bounds
  return jnp.maximum(x - low, high - x).astype(numerics.wide_type(x))


def cosine(
  step: Array, num_steps: types.Scalar, first: types.Scalar, last: types.Scalar
) -> Array:
  """From `first` at step 0 to `last` at `num_steps` along half a cosine."""
  # A product of a float and an integer would be a float64, where there are any.
  step = jnp.asarray(step, jnp.float32)
  share = (1 + jnp.cos(jnp.pi * step / num_steps)) / 2
  return last + (first - last) * share
