"""The shortest way to a hyperplane within a box, against general solvers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from jaxadv import projections

METHODS = {
  "linf": (projections.linf, lambda d: np.abs(d).max()),
  "l2": (projections.l2, lambda d: np.sqrt(np.square(d).sum())),
  "l1": (projections.l1, lambda d: np.abs(d).sum()),
}
BOUNDS = (0.0, 1.0)


def case(seed, size=6):
  rng = np.random.default_rng(seed)
  x = rng.random(size)
  x[rng.random(size) < 0.3] = 0.0
  x[rng.random(size) < 0.2] = 1.0
  w = rng.normal(size=size) * np.exp(rng.normal(size=size))
  w[rng.random(size) < 0.2] = 0.0
  w[0] = 1.0
  furthest = np.where(w > 0, w * (1 - x), -w * x).sum()
  nearest = np.where(w > 0, -w * x, w * (1 - x)).sum()
  return x, w, rng.uniform(nearest, furthest)


def least_linf(w, gap, low, high):
  n = len(w)
  eye, ones = np.eye(n), np.ones((n, 1))
  result = scipy.optimize.linprog(
    np.r_[np.zeros(n), 1.0],
    A_ub=np.block([[eye, -ones], [-eye, -ones]]),
    b_ub=np.zeros(2 * n),
    A_eq=np.r_[w, 0.0][None],
    b_eq=[gap],
    bounds=[*zip(low, high, strict=True), (0, None)],
  )
  return result.fun


def least_l1(w, gap, low, high):
  result = scipy.optimize.linprog(
    np.ones(2 * len(w)),
    A_eq=np.r_[w, -w][None],
    b_eq=[gap],
    bounds=[*((0, h) for h in high), *((0, -l) for l in low)],
  )
  return result.fun


def least_l2(w, gap, low, high):
  result = scipy.optimize.minimize(
    lambda d: d @ d,
    np.clip(gap * w / (w @ w), low, high),
    jac=lambda d: 2 * d,
    constraints={
      "type": "eq",
      "fun": lambda d: w @ d - gap,
      "jac": lambda d: w,
    },
    bounds=[*zip(low, high, strict=True)],
    method="SLSQP",
    options={"ftol": 1e-12, "maxiter": 500},
  )
  return np.sqrt(result.fun)


LEAST = {"linf": least_linf, "l2": least_l2, "l1": least_l1}


def batched(name, x, w, gap, bounds=BOUNDS):
  x, w, gap = (jnp.asarray(a, jnp.float32) for a in (x, w, gap))
  return np.asarray(compiled(name, x, w, gap, bounds), np.float64)


@functools.partial(jax.jit, static_argnames="name")
def compiled(name, x, w, gap, bounds):
  project = jax.vmap(METHODS[name][0], in_axes=(0, 0, 0, None))
  return project(x, w, gap, bounds)


@pytest.mark.parametrize("name", METHODS)
def test_is_feasible_and_as_short_as_a_solver_finds(name):
  cases = [case(seed) for seed in range(40)]
  deltas = batched(name, *(np.stack(part) for part in zip(*cases, strict=True)))
  for (x, w, gap), delta in zip(cases, deltas, strict=True):
    assert w @ delta == pytest.approx(gap, abs=1e-5)
    assert np.all((x + delta >= -1e-6) & (x + delta <= 1 + 1e-6))
    least = LEAST[name](w, gap, -x, 1 - x)
    assert METHODS[name][1](delta) == pytest.approx(least, abs=2e-5)
    np.testing.assert_array_equal(delta[w == 0], 0.0)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("sign", [1, -1])
def test_goes_as_near_as_the_box_allows(name, sign):
  x, w, _ = case(3)
  corner = np.where(w * sign > 0, 1 - x, -x) * (w != 0)
  for gap in (sign * 1e3, sign * np.inf):
    delta = batched(name, x[None], w[None], [gap])[0]
    np.testing.assert_allclose(delta, corner, atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_stays_where_nothing_can_be_gained(name):
  x, w, _ = case(5)
  rows = np.stack([x, x, x])
  normals = np.stack([0 * w, w, w])
  delta = batched(name, rows, normals, [1.0, 0.0, np.nan])
  np.testing.assert_array_equal(delta, np.zeros((3, len(x))))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_the_scale_of_the_hyperplane_does_not_matter(name, scale):
  x, w, gap = case(7)
  expected = batched(name, x[None], w[None], [gap])
  scaled = batched(name, x[None], w[None] * scale, [gap * scale])
  np.testing.assert_allclose(scaled, expected, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_meets_the_hyperplane_of_an_image_and_keeps_its_shape(name):
  rng = np.random.default_rng(0)
  x = np.maximum(rng.uniform(-3, 1, (8, 28, 28, 1)), -1.0)
  w = rng.normal(size=x.shape) * np.exp(2 * rng.normal(size=x.shape))
  furthest = np.where(w > 0, w * (1 - x), w * (-1 - x)).sum((1, 2, 3))
  gap = np.linspace(0.01, 0.99, 8) * furthest
  delta = batched(name, x, w, gap, bounds=(-1.0, 1.0))
  assert delta.shape == x.shape
  np.testing.assert_allclose((w * delta).sum((1, 2, 3)), gap, rtol=1e-5)
  assert np.abs(x + delta).max() <= 1 + 1e-6


def test_l1_shares_out_between_equal_coordinates():
  delta = batched("l1", np.zeros((1, 4)), np.ones((1, 4)), [1.0])
  np.testing.assert_allclose(delta, np.full((1, 4), 0.25), atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_a_row_does_not_depend_on_its_neighbours(name):
  cases = [case(seed) for seed in range(6)]
  x, w, gap = (np.stack(part) for part in zip(*cases, strict=True))
  together = batched(name, x, w, gap)
  alone = [batched(name, x[i : i + 1], w[i : i + 1], gap[i : i + 1])[0]
           for i in range(6)]  # fmt: skip
  np.testing.assert_array_equal(together, np.stack(alone))


def test_l1_tells_weights_apart_that_differ_in_float64_alone():
  """The largest moves first, by all of its room."""
  w = 1 + 1e-12 * np.asarray([0.0, 2.0, 1.0])
  with jax.enable_x64(True):
    delta = projections.l1(np.full(3, 0.5), w, np.float64(0.75), BOUNDS)
  np.testing.assert_allclose(delta, [0, 0.5, 0.25], atol=1e-9)
