"""What minimum-norm attacks by gradient steps have in common.

Their states hold, beside the fields of `types.State`, `x`, the `point` that the
model is asked about next, the number of the `step`, and `distance` [B]: that of
`x_adv`, infinite while none was found.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxadv import oracles, types

Array = jax.Array
Bounds = tuple[types.Scalar, types.Scalar]


def start(x: Array) -> dict[str, Array]:
  """The fields of the states, of searches that start at the inputs."""
  rows = jnp.zeros(x.shape[0], bool)
  return {
    "x": x,
    "step": jnp.zeros(x.shape[0], jnp.int32),
    "point": x,
    "distance": jnp.full(x.shape[0], jnp.inf, jnp.float32),
    "x_adv": x,
    "found": rows,
    "done": rows,
  }


def keep_nearest(state: Any, norm: Callable[[Array], Array], won: Array) -> Any:
  """Takes in whether the points won; nothing beats a distance of zero."""
  size = jax.vmap(norm)(perturbation(state))
  nearer = won & (size < state.distance)
  distance = jnp.where(nearer, size, state.distance)
  return state._replace(
    step=state.step + 1,
    distance=distance,
    x_adv=oracles.choose(nearer, state.point, state.x_adv),
    found=state.found | won,
    done=distance <= 0,
  )


def perturbation(state: Any) -> Array:
  """The perturbations of the points, in float32 at least."""
  dtype = jnp.promote_types(state.x.dtype, jnp.float32)
  return state.point.astype(dtype) - state.x.astype(dtype)


def inside(x: Array, delta: Array, bounds: Bounds) -> Array:
  """The perturbed input, clipped to the bounds, in the type of the input."""
  return jnp.clip(x + delta, *bounds).astype(x.dtype)


def room(x: Array, bounds: Bounds) -> Array:
  """How far each coordinate can move: the largest of all perturbations."""
  low, high = bounds
  return jnp.maximum(x - low, high - x).astype(jnp.float32)


def cosine(
  step: Array, num_steps: types.Scalar, first: types.Scalar, last: types.Scalar
) -> Array:
  """From `first` at step 0 to `last` at `num_steps` along half a cosine."""
  share = (1 + jnp.cos(jnp.pi * step / num_steps)) / 2
  return last + (first - last) * share
