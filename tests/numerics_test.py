"""Small exact building blocks, against NumPy's sorts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import numerics


@pytest.mark.parametrize("scale", [1e-36, 1e-30, 1.0, 1e30])
def test_unit_l2_has_length_one_at_every_scale(scale):
  x = np.random.default_rng(0).normal(size=(3, 4))
  unit = numerics.unit_l2(jnp.asarray(scale * x, jnp.float32))
  np.testing.assert_allclose(unit, x / np.linalg.norm(x), rtol=1e-5)


def test_unit_l2_of_zero_is_zero():
  np.testing.assert_array_equal(numerics.unit_l2(jnp.zeros((2, 2))), 0.0)


@pytest.mark.parametrize("kind", ["normal", "ties", "zeros", "wide"])
def test_kth_largest_is_that_of_a_sort(kind):
  rng = np.random.default_rng(1)
  x = {
    "normal": np.abs(rng.normal(size=37)),
    "ties": rng.integers(0, 4, 37) / 3,
    "zeros": np.zeros(37),
    "wide": 10.0 ** rng.uniform(-37, 37, 37),
  }[kind].astype(np.float32)
  ks = np.arange(1, 38)
  # `k` is traced here, as it is where it depends on a leaf.
  found = jax.jit(jax.vmap(numerics.kth_largest, (None, 0)))(x, ks)
  np.testing.assert_array_equal(found, np.sort(x)[::-1])


def _sorted_threshold(magnitudes, caps, total):
  """The root at one of the breakpoints' pieces, in float64."""
  mass = lambda shift: np.clip(magnitudes - shift, 0, caps).sum()
  if mass(0.0) <= total:
    return 0.0
  knots = np.unique(np.concatenate([[0.0], magnitudes, magnitudes - caps]))
  knots = knots[knots >= 0]
  masses = np.array([mass(knot) for knot in knots])
  i = np.flatnonzero(masses >= total)[-1]
  slope = (masses[i] - masses[i + 1]) / (knots[i + 1] - knots[i])
  return knots[i] + (masses[i] - total) / slope


@pytest.mark.parametrize("caps", ["none", "some", "zero"])
def test_soft_threshold_is_that_of_a_sort(caps):
  rng = np.random.default_rng(2)
  solve = jax.jit(numerics.soft_threshold)
  for _ in range(20):
    m = np.abs(rng.normal(size=50)).astype(np.float32)
    c = {
      "none": m,
      "some": rng.uniform(0, 1, 50).astype(np.float32),
      "zero": (rng.uniform(size=50) < 0.5) * m,
    }[caps]
    total = np.float32(rng.uniform(0.1, 1.2) * np.clip(m, 0, c).sum())
    expected = _sorted_threshold(m.astype(float), c.astype(float), float(total))
    shift = float(solve(m, c, total))
    mass = np.clip(m - np.float64(shift), 0, c).sum()
    np.testing.assert_allclose(shift, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
      mass, min(total, np.clip(m, 0, c).sum()), rtol=1e-5
    )


def test_soft_threshold_where_newton_s_steps_go_back_and_forth():
  rng = np.random.default_rng(0)
  solve = jax.jit(numerics.soft_threshold)
  for _ in range(500):
    x = np.round(rng.uniform(-0.2, 1.2, 40)).clip(0, 1) * rng.uniform(size=40)
    delta = rng.normal(size=40) * rng.choice([0.01, 0.1, 1.0, 3.0])
    caps = np.where(delta > 0, 1 - x, x).astype(np.float32)
    m, total = np.abs(delta).astype(np.float32), rng.choice([1.0, 2.0, 3.0])
    mass = np.clip(m - np.float64(solve(m, caps, total)), 0, caps).sum()
    expected = min(total, np.clip(m, 0, caps).sum())
    np.testing.assert_allclose(mass, expected, rtol=1e-5)


def test_soft_threshold_with_equal_entries_and_with_no_room():
  m = jnp.full(8, 0.5)
  np.testing.assert_allclose(numerics.soft_threshold(m, m, 1.0), 0.375)
  np.testing.assert_allclose(numerics.soft_threshold(m, m, 0.0), 0.5)
  zero = jnp.zeros(8)
  assert numerics.soft_threshold(zero, zero, 1.0) == 0
  assert numerics.soft_threshold(m, zero, 1.0) == 0


def test_guard_vanishes_in_no_type():
  assert numerics.guard(1e-12, jnp.float32) == 1e-12
  for dtype in (jnp.float16, jnp.bfloat16):
    assert jnp.asarray(numerics.guard(1e-12, dtype), dtype) > 0


def test_kth_largest_is_exact_in_float64():
  rng = np.random.default_rng(3)
  x = 1 + 1e-13 * rng.permutation(37)
  with jax.enable_x64(True):
    kth = jax.jit(jax.vmap(numerics.kth_largest, (None, 0)))
    found = kth(x, np.arange(1, 38))
  np.testing.assert_array_equal(found, np.sort(x)[::-1])


def test_kth_largest_of_half_precision_is_one_of_them():
  x = jnp.asarray([0.1, 0.3, 0.2], jnp.bfloat16)
  assert numerics.kth_largest(x, 2) == x[2]
