"""Laws of the L0 ball."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import balls


def _each(function, *arguments):
  return np.asarray(jax.jit(jax.vmap(function))(*arguments))


def _points(size=5):
  return np.random.default_rng(0).normal(size=(30, size)).astype(np.float32)


def _brute_force(delta, eps, low, high):
  """The least squared distance of a feasible point."""
  clipped, best = np.clip(delta, low, high), np.inf
  for kept in itertools.combinations(range(len(delta)), eps):
    point = np.zeros_like(delta)
    point[list(kept)] = clipped[list(kept)]
    best = min(best, np.sum((delta - point) ** 2))
  return best


@pytest.mark.parametrize("eps", [0, 1, 3, 5])
def test_projections_are_the_nearest_points(eps):
  points = _points()
  rng = np.random.default_rng(1)
  low = -rng.uniform(0, 1, points.shape).astype(np.float32)
  high = rng.uniform(0, 1, points.shape).astype(np.float32)
  ball = balls.L0(eps)
  free = _each(ball.project, points)
  boxed = _each(ball.project_box, points, low, high)
  assert np.all((boxed >= low) & (boxed <= high))
  for projected, a, b in (
    (free, -9 + 0 * low, 9 + 0 * high),
    (boxed, low, high),
  ):
    assert np.all(np.count_nonzero(projected, axis=1) <= eps)
    for point, found, *box in zip(points, projected, a, b, strict=True):
      least = _brute_force(point, eps, *box)
      assert np.sum((point - found) ** 2) == pytest.approx(least, abs=1e-5)
  np.testing.assert_array_equal(_each(ball.project, free), free)


def test_equal_and_tiny_coordinates_do_not_exceed_the_radius():
  ball = balls.L0(2.7)
  np.testing.assert_array_equal(
    ball.project(jnp.asarray([[1.0, -1.0], [1.0, 1.0]])), [[1, -1], [0, 0]]
  )
  tiny = jnp.asarray([0.0, 1e-30, 0.0, -2e-30])
  np.testing.assert_array_equal(ball.project_box(tiny, -1.0, 1.0), tiny)
  np.testing.assert_array_equal(ball.project(jnp.zeros(4)), jnp.zeros(4))


def test_norm_sample_and_direction_count_coordinates():
  ball, like = balls.L0(3), jnp.zeros((4, 5, 1))
  keys = jax.random.split(jax.random.key(0), 50)
  samples = _each(lambda key: ball.sample(key, like), keys)
  np.testing.assert_array_equal(_each(ball.norm, samples), 3)
  assert np.all(np.count_nonzero(samples, axis=0) > 0)
  assert np.abs(samples).max() <= 1
  grad = jnp.asarray([1.0, -5.0, 2.0, 0.5, -4.0])
  np.testing.assert_array_equal(ball.steepest(grad), [0, -1, 1, 0, -1])
  assert ball.norm(jnp.ones(300, jnp.bfloat16)) == 300


def test_refuses_a_negative_radius():
  with pytest.raises(ValueError, match="eps"):
    balls.L0(-1)


def test_keeps_as_many_coordinates_in_float64():
  points = np.random.default_rng(0).normal(size=(20, 30))
  with jax.enable_x64(True):
    for projected in (
      _each(balls.L0(7).project, points),
      _each(lambda point: balls.L0(7).project_box(point, -1.0, 1.0), points),
    ):
      np.testing.assert_array_equal(np.count_nonzero(projected, axis=1), 7)
