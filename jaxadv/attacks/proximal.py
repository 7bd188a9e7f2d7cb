"""Proximal maps: what is left of ONE point v when a norm pulls at it.

`prox(v, radius)` minimises `radius * cost(z) + ||z - v||_2^2 / 2`. Where the
cost is a norm, that is v less its projection onto the ball of that radius of
the dual norm (Moreau).
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxadv import balls, norms, numerics, types

Array = jax.Array

# In units of `radius^(3/4)`: where zero and the other minimum cost the same,
# and where the pull is below the rounding of a float32.
_LEAST = 2 * (2 / 3) ** 0.75
_FREE = 1e6
# Smaller radii than its 4/3rd power, 5e-27, do not pull.
_TINY = 2e-20


def _of_dual(ball: Callable[..., types.Ball], v: Array, radius: Array) -> Array:
  return v - ball(radius).project(v)


OF_NORM: dict[norms.Norm, Callable[[Array, Array], Array]] = {
  norms.Linf: functools.partial(_of_dual, balls.L1),
  norms.L2: functools.partial(_of_dual, balls.L2),
  norms.L1: functools.partial(_of_dual, balls.Linf),
}


def two_thirds(v: Array, radius: Array | float) -> Array:
  """The proximal map of `sum |z_i|^(2/3)`, in closed form.

  Zero where `|v| <= 2 (2 radius / 3)^(3/4)`. Elsewhere the cube root s of |z|
  solves `s^4 - |v| s + 2 radius / 3 = 0`, by the hyperbolic form of Cardano's
  formula: its argument is well above 1 there, so no digits are lost.

  adv-lib's closed form is not zero below that bound where the cost has another
  minimum, which is then only a local one.

  Reference: Cao et al., "Fast image deconvolution using closed-form
  thresholding formulas of Lq (q = 1/2, 2/3) regularization", 2013.
  """
  wide = v.astype(numerics.wide_type(v))
  unit = jnp.maximum(jnp.asarray(radius, wide.dtype) ** 0.75, _TINY)
  size = jnp.abs(wide) / unit
  u = jnp.clip(size, _LEAST, _FREE)
  angle = jnp.arccosh(27 / (32 * math.sqrt(2)) * u**2)
  root = 2 / math.sqrt(3) * 2**0.25 * jnp.sqrt(jnp.cosh(angle / 3))
  s = (root + jnp.sqrt(2 * u / root - root**2)) / 2
  return jnp.where(size > _LEAST, wide * (s**3 / u), 0.0).astype(v.dtype)
