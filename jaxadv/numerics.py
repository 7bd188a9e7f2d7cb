"""Small exact building blocks for one example, safe at zero."""

import jax
import jax.numpy as jnp

Array = jax.Array


def unit_l2(x: Array) -> Array:
  """Scales `x` to Euclidean length 1; zero stays zero.

  Dividing by the largest magnitude first keeps the squares of tiny gradients
  from underflowing, so there is no guard that would shrink them.
  """
  largest = jnp.max(jnp.abs(x))
  scaled = x / jnp.where(largest > 0, largest, 1.0)
  length = jnp.linalg.norm(jnp.ravel(scaled))
  return scaled / jnp.where(length > 0, length, 1.0)


def kth_largest(magnitudes: Array, k: Array | int) -> Array:
  """The k-th largest of non-negative float32 numbers; `k` may be traced.

  Bisects the bit pattern, whose integer order is the order of non-negative
  floats: exact after 31 counts, and several times faster than a sort.
  """
  bits = jax.lax.bitcast_convert_type(
    jnp.ravel(magnitudes).astype(jnp.float32), jnp.int32
  )

  def set_bit(i, threshold):
    candidate = threshold | (jnp.int32(1) << (30 - i))
    enough = jnp.sum(bits >= candidate) >= k
    return jnp.where(enough, candidate, threshold)

  threshold = jax.lax.fori_loop(0, 31, set_bit, jnp.int32(0))
  return jax.lax.bitcast_convert_type(threshold, jnp.float32)


def soft_threshold(
  magnitudes: Array, caps: Array, total: Array | float
) -> Array:
  """The `shift >= 0` with `sum(clip(magnitudes - shift, 0, caps)) = total`.

  Zero where the sum is at most `total` already. The sum is piecewise linear in
  the shift: bisection finds the piece, one division solves it exactly.
  """

  def mass(shift):
    return jnp.sum(jnp.clip(magnitudes - shift, 0.0, caps))

  def halve(_, interval):
    low, high = interval
    middle = 0.5 * (low + high)
    above = mass(middle) > total
    return jnp.where(above, middle, low), jnp.where(above, high, middle)

  zero = jnp.zeros((), magnitudes.dtype)
  low, high = jax.lax.fori_loop(
    0, 30, halve, (zero, jnp.max(magnitudes)), unroll=5
  )
  middle = 0.5 * (low + high)
  capped = magnitudes - middle >= caps
  free = (magnitudes > middle) & ~capped
  fixed = jnp.sum(jnp.where(capped, caps, 0.0))
  count = jnp.sum(free)
  solved = (jnp.sum(jnp.where(free, magnitudes, 0.0)) + fixed - total) / (
    jnp.maximum(count, 1)
  )
  # Rounding may put the solution of the piece outside of it.
  shift = jnp.where(count > 0, jnp.clip(solved, low, high), high)
  return jnp.where(mass(zero) > total, shift, zero)
