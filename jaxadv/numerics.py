"""Small exact building blocks for one example, safe at zero."""

from collections.abc import Callable

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


def guard(tiny: float, dtype: jnp.dtype) -> float:
  """`tiny`, or the least normal number of a type in which it would vanish."""
  return max(tiny, float(jnp.finfo(dtype).tiny))


def wide_type(x: Array) -> jnp.dtype:
  """The type to compute with: that of `x`, but float32 at least."""
  return jnp.promote_types(jnp.result_type(x), jnp.float32)


def kth_largest(magnitudes: Array, k: Array | int) -> Array:
  """The k-th largest of non-negative numbers; `k` may be traced.

  Exact after as many counts as the type has bits but for the sign (31, or 63 in
  float64), and several times faster than a sort. Half precision gives float32.
  """
  bits = ordered_bits(jnp.ravel(magnitudes))
  last = largest_bits(lambda least: jnp.sum(bits >= least) >= k, bits.dtype)
  return jax.lax.bitcast_convert_type(last, wide_type(magnitudes))


def ordered_bits(magnitudes: Array) -> Array:
  """Bit patterns: integers in the order of these non-negative numbers."""
  magnitudes = magnitudes.astype(wide_type(magnitudes))
  integer = jnp.int64 if magnitudes.dtype == jnp.float64 else jnp.int32
  return jax.lax.bitcast_convert_type(magnitudes, integer)


def largest_bits(enough: Callable[[Array], Array], dtype: jnp.dtype) -> Array:
  """The largest pattern for which `enough` holds, by bisection; 0 at least.

  `enough` holds up to some pattern and for none above it.
  """
  top = jnp.iinfo(dtype).bits - 2

  def set_bit(i, found):
    candidate = found | (jnp.ones((), dtype) << jnp.asarray(top - i, dtype))
    return jnp.where(enough(candidate), candidate, found)

  return jax.lax.fori_loop(0, top + 1, set_bit, jnp.zeros((), dtype))


def soft_threshold(
  magnitudes: Array, caps: Array, total: Array | float
) -> Array:
  """The `shift >= 0` with `sum(clip(magnitudes - shift, 0, caps)) = total`.

  Zero where the sum is at most `total` already. The sum is piecewise linear and
  falls with the shift, so Newton's steps end at the exact solution once they
  are on its piece, mostly in fewer than ten rounds; steps out of the interval
  that is known to hold it are replaced by its middle.
  """
  # Sums over several axes take XLA:CPU longer.
  magnitudes, caps = jnp.ravel(magnitudes), jnp.ravel(caps)
  total = jnp.asarray(total, magnitudes.dtype)
  zero = jnp.zeros((), magnitudes.dtype)
  largest = jnp.max(magnitudes, initial=0.0)
  rounding = jnp.finfo(magnitudes.dtype).eps * largest

  def narrow(carry):
    shift, low, high, _, count = carry
    over = magnitudes - shift
    excess = jnp.sum(jnp.clip(over, 0.0, caps)) - total
    slope = jnp.sum((over > 0) & (over < caps))
    low = jnp.where(excess > 0, shift, low)
    high = jnp.where(excess > 0, high, shift)
    step = excess / jnp.maximum(slope, 1)
    near = (slope > 0) & (jnp.abs(step) <= rounding)
    # Strictly: steps from end to end of the interval would never narrow it.
    within = (slope > 0) & (shift + step > low) & (shift + step < high)
    target = jnp.where(near | within, shift + step, 0.5 * (low + high))
    # A sum that is small enough without a shift needs none.
    solved = (excess == 0) | ((shift == 0) & (excess < 0))
    target = jnp.where(solved, shift, target)
    on = ~solved & ~near & (high - low > rounding)
    return target, low, high, on, count + 1

  # The middle alone would need 24 rounds for all digits of a float32.
  start = (zero, zero, largest, jnp.bool_(True), jnp.int32(0))
  return jax.lax.while_loop(lambda c: c[3] & (c[4] < 100), narrow, start)[0]
