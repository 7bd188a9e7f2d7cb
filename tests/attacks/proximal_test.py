"""Proximal maps against a search for the minimum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import norms
from jaxadv.attacks import proximal

VALUES = np.linspace(-1.0, 1.0, 41)


def _brute(cost, v, radius):
  """The minimisers of `radius cost(z) + (z - v)^2 / 2` for numbers v."""
  grid = np.linspace(-1.0, 1.0, 40001)
  return np.asarray(
    [grid[np.argmin(radius * cost(grid) + (grid - u) ** 2 / 2)] for u in v]
  )


@pytest.mark.parametrize("radius", [0.003, 0.1, 0.4])
def test_two_thirds_is_the_minimiser(radius):
  expected = _brute(lambda z: np.abs(z) ** (2 / 3), VALUES, radius)
  assert (expected == 0).any() and (expected != 0).any()
  found = proximal.two_thirds(jnp.float32(VALUES), jnp.float32(radius))
  np.testing.assert_allclose(found, expected, atol=1e-4)


def test_two_thirds_is_zero_up_to_where_both_minima_are_equal():
  # At 2 (2 m / 3)^(3/4), zero and a third of it cost the same.
  radius = 0.2
  least = 2 * (2 * radius / 3) ** 0.75
  below, above = np.float32([0.999 * least, 1.001 * least])
  assert proximal.two_thirds(below, radius) == 0
  assert proximal.two_thirds(above, radius) > least / 2


@pytest.mark.parametrize("radius", [0.0, 1e-30, 1e-8, 1e4, 1e12])
def test_two_thirds_of_tiny_and_huge_radii(radius):
  v = jnp.asarray([0.0, 1e-30, -0.5, 1.0])
  found = proximal.two_thirds(v, jnp.float32(radius))
  expected = 0 * v if radius > 1 else v
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)
  assert found[0] == 0 and np.isfinite(found).all()
  if radius in (0.0, 1e-30):
    np.testing.assert_allclose(found[2:], v[2:], rtol=1e-6)


def test_two_thirds_keeps_its_type():
  for dtype in (jnp.float32, jnp.bfloat16):
    v = jnp.asarray([0.5, -0.2], dtype)
    assert proximal.two_thirds(v, jnp.asarray(0.1, dtype)).dtype == dtype


def test_l1_is_the_minimiser_of_each_coordinate():
  found = proximal.OF_NORM[norms.L1](jnp.float32(VALUES), 0.3)
  np.testing.assert_allclose(found, _brute(np.abs, VALUES, 0.3), atol=1e-4)


@pytest.mark.parametrize("norm", [norms.Linf, norms.L2, norms.L1])
def test_no_point_beside_is_better(norm):
  keys = jax.random.split(jax.random.key(0), 2)
  v = jax.random.normal(keys[0], (5,))
  found = proximal.OF_NORM[norm](v, 0.4)

  def cost(z):
    return 0.4 * norm(z) + jnp.sum((z - v) ** 2) / 2

  around = found[None] + 0.03 * jax.random.normal(keys[1], (200, 5))
  assert jnp.all(jax.vmap(cost)(around) >= cost(found) - 1e-6)
