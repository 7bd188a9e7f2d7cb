"""DDN against closed forms, its bookkeeping and the traps it has had."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import engine, norms
from jaxadv.attacks.ddn import ddn
from tests import victims
from tests.attacks import minimum_norm_cases as cases

KEY, WIDE = cases.KEY, cases.WIDE


def test_finds_the_distance_of_a_linear_model():
  w, b, x, label = cases.problem(num_classes=2)
  attack = ddn(num_steps=200, bounds=WIDE)
  x_adv = engine.run(attack, victims.linear(w, b), KEY, x, label)
  exact = victims.linear_distance(w, b, x, label, 2)
  found = np.linalg.norm(np.asarray(x_adv) - x, axis=1)
  np.testing.assert_allclose(found, exact, rtol=0.01)


def test_the_radius_follows_the_wins_and_the_result_is_the_nearest():
  w, b, x, label = cases.problem()
  logits_fn = victims.linear(w, b)
  attack = ddn(num_steps=12, gamma=0.1, init_norm=0.5, bounds=WIDE)
  point, eps = x, np.full(len(x), 0.5)
  least, nearest = np.full(len(x), np.inf), x
  for state in cases.states(attack, logits_fn, x, label):
    won = np.argmax(point @ w + b, axis=1) != label
    size = np.linalg.norm(point - x, axis=1)
    nearer = won & (size < least)
    least = np.where(nearer, size, least)
    nearest = np.where(nearer[:, None], point, nearest)
    eps = eps * np.where(won, 0.9, 1.1)
    np.testing.assert_allclose(state.eps, eps, rtol=1e-4)
    np.testing.assert_array_equal(state.x_adv, nearest)
    np.testing.assert_array_equal(state.found, np.isfinite(least))
    point = np.asarray(state.point)
    moved = np.linalg.norm(point - x, axis=1)
    np.testing.assert_allclose(moved, eps, rtol=1e-4)
  assert np.isfinite(least).any()


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (0.4, 0.7)])
def test_a_gradient_of_zero_moves_at_random_inside_the_bounds(bounds):
  x = jnp.full((3, 6), 0.5)
  logits_fn = victims.linear(np.zeros((6, 2)), [1.0, 0.0])
  attack = ddn(num_steps=3, init_norm=0.05, bounds=bounds)
  for state in cases.states(attack, logits_fn, x, jnp.zeros(3, int)):
    size = np.asarray(jax.vmap(norms.L2)(state.point - x))
    np.testing.assert_allclose(size, state.eps, rtol=1e-3)
    assert np.ptp(np.asarray(state.point), axis=0).max() > 0
    assert np.all((state.point >= bounds[0]) & (state.point <= bounds[1]))
  np.testing.assert_array_equal(state.x_adv, x)
  assert not state.found.any() and not state.done.any()


def test_an_input_that_is_wrong_already_is_its_own_result():
  w, b, x, label = cases.problem()
  attack = ddn(num_steps=5, bounds=WIDE)
  states = cases.states(attack, victims.linear(w, b), x, (label + 1) % 3)
  state = next(states)
  assert state.found.all() and state.done.all()
  np.testing.assert_array_equal(state.x_adv, x)


@pytest.mark.parametrize(
  "options",
  [
    {"num_steps": 0},
    {"gamma": 0.0},
    {"gamma": 1.0},
    {"init_norm": -1.0},
    {"bounds": (1, 0)},
  ],
)
def test_refuses_senseless_options(options):
  with pytest.raises(ValueError, match=next(iter(options))):
    ddn(**options)
