"""The step of a Brendel-Bethge attack against a general solver."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from jaxadv import norms
from jaxadv.attacks import trust_region

SIZE = 8


@functools.cache
def _solver(norm):
  geometry = trust_region.geometry(norm)
  return jax.jit(functools.partial(trust_region.solve, geometry))


def _solve(norm, away, normal, gap, radius, low, high):
  parts = (away, normal, gap, radius, low, high)
  task = trust_region.Task(*(jnp.asarray(a, jnp.float32) for a in parts))
  return np.asarray(_solver(norm)(task), np.float64)


def _task(rng, reach):
  """A random problem whose boundary is `reach` radii away without the box."""
  x, noise = rng.uniform(size=SIZE), 0.4 * rng.normal(size=SIZE)
  point = np.clip(x + noise, 0, 1)
  normal = rng.normal(size=SIZE) * 10 ** rng.uniform(-1, 1, SIZE)
  radius = 10 ** rng.uniform(-2, 0.3)
  gap = reach * rng.choice([-1, 1]) * np.linalg.norm(normal) * radius
  return x - point, normal, gap, radius, -point, 1 - point


def _reference(rng, norm, away, normal, gap, radius, low, high):
  """The least distance by SLSQP, from several starts; None: no solution."""
  # The last variable bounds the distance in every coordinate.
  linf = norm is norms.Linf
  length = np.linalg.norm(normal)
  constraints = [
    {"type": "eq", "fun": lambda v: (normal @ v[:SIZE] - gap) / length},
    {"type": "ineq", "fun": lambda v: radius**2 - v[:SIZE] @ v[:SIZE]},
  ]
  limits = [*zip(low, high, strict=True), (0, 3)]
  if linf:
    constraints += [
      {"type": "ineq", "fun": lambda v, s=s: v[-1] - s * (v[:SIZE] - away)}
      for s in (1, -1)
    ]

  def distance(v):
    return v[-1] if linf else np.square(v[:SIZE] - away).sum()

  found = []
  for scale in (0.0, 0.1, 0.5):
    start = np.append(scale * radius * rng.normal(size=SIZE), 1.0)
    result = optimize.minimize(
      distance, start, method="SLSQP", bounds=limits, constraints=constraints,
      options={"maxiter": 500, "ftol": 1e-12},
    )  # fmt: skip
    if result.success:
      found.append(result.fun)
  return min(found, default=None)


@pytest.mark.parametrize("norm", [norms.L2, norms.Linf], ids=["l2", "linf"])
def test_comes_as_near_as_a_general_solver(norm):
  rng = np.random.default_rng(0)
  solved = 0
  for _ in range(12):
    away, normal, gap, radius, low, high = task = _task(rng, 0.3)
    delta = _solve(norm, *task)
    assert (delta >= low - 1e-6).all() and (delta <= high + 1e-6).all()
    assert np.linalg.norm(delta) <= radius * (1 + 1e-5)
    least = _reference(rng, norm, *task)
    if least is None:
      continue
    solved += 1
    linf = np.abs(delta - away).max()
    mine = linf if norm is norms.Linf else np.square(delta - away).sum()
    np.testing.assert_allclose(mine, least, atol=2e-3 * radius + 1e-5)
    missed = abs(normal @ delta - gap) / np.linalg.norm(normal)
    assert missed < 1e-4 * radius
  assert solved >= 8


@pytest.mark.parametrize("norm", [norms.L2, norms.Linf], ids=["l2", "linf"])
def test_a_boundary_out_of_reach_is_approached_as_far_as_can_be(norm):
  rng = np.random.default_rng(0)
  for _ in range(6):
    _, normal, gap, radius, low, high = task = _task(rng, 5.0)
    delta = _solve(norm, *task)
    assert np.linalg.norm(delta) <= radius * (1 + 1e-5)
    ahead = np.sign(gap) * normal / np.linalg.norm(normal)
    result = optimize.minimize(
      lambda v, ahead=ahead: -ahead @ v,
      np.zeros(SIZE),
      method="SLSQP",
      bounds=list(zip(low, high, strict=True)),
      constraints={"type": "ineq", "fun": lambda v, r=radius: r**2 - v @ v},
    )
    np.testing.assert_allclose(ahead @ delta, -result.fun, rtol=2e-3)


def test_the_whole_way_to_an_input_on_the_boundary():
  """Nothing binds but the hyperplane, on which the input lies."""
  rng = np.random.default_rng(0)
  away = np.asarray([0.3, -0.2, 0.1, 0, 0, 0, 0, 0])
  normal = rng.normal(size=SIZE)
  wide = np.full(SIZE, 9.0)
  for norm in (norms.L2, norms.Linf):
    delta = _solve(norm, away, normal, normal @ away, 5.0, -wide, wide)
    np.testing.assert_allclose(delta, away, atol=2e-3)


@pytest.mark.parametrize("norm", [norms.L2, norms.Linf], ids=["l2", "linf"])
def test_senseless_slopes_and_gaps_move_nothing_out_of_bounds(norm):
  rng = np.random.default_rng(0)
  away, normal, _, radius, low, high = _task(rng, 0.3)
  assert not _solve(norm, away, 0 * normal, 1.0, radius, low, high).any()
  for gap in (np.nan, np.inf, -np.inf):
    delta = _solve(norm, away, normal, gap, radius, low, high)
    assert np.isfinite(delta).all()
    assert np.linalg.norm(delta) <= radius * (1 + 1e-5)
    assert (delta >= low - 1e-6).all() and (delta <= high + 1e-6).all()


def test_refuses_other_norms():
  with pytest.raises(ValueError, match="norm must be"):
    trust_region.geometry(norms.L1)
