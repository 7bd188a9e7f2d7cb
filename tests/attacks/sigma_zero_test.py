"""Sigma-zero against closed forms and its bookkeeping."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import engine
from jaxadv.attacks.sigma_zero import sigma_zero
from tests import victims
from tests.attacks import minimum_norm_cases as cases

KEY = cases.KEY


def test_finds_the_least_number_of_coordinates():
  weights = np.array([0.5, 3.0, 1.0, 2.0, 0.1, 0.2])
  x = np.full((3, 6), 0.5, np.float32)
  # All coordinates have 0.5 of room: 1.5, 1, 0.5 are the largest gains.
  for lead, least in ((1.4, 1), (2.4, 2), (2.9, 3)):
    x_adv = engine.run(
      sigma_zero(num_steps=300),
      victims.binary(weights, -lead - 0.5 * weights.sum()),
      KEY, x, np.zeros(3, np.int32),
    )  # fmt: skip
    np.testing.assert_array_equal(
      np.count_nonzero(np.asarray(x_adv) != x, axis=1), least
    )


def test_small_changes_are_undone_and_the_threshold_follows_the_wins():
  logits_fn = victims.binary([1.0, 0.8, 0.1], -0.9)
  x = jnp.asarray([[0.2, 0.3, 0.5], [0.1, 0.1, 0.1]])
  attack = sigma_zero(num_steps=20)
  before, won = np.full(2, 0.3), np.zeros(2, bool)
  for state in cases.states(attack, logits_fn, x, jnp.zeros(2, int)):
    threshold = np.asarray(state.threshold)
    np.testing.assert_array_equal(threshold > before, won)
    size = np.abs(np.asarray(state.point - x))
    assert np.all((size == 0) | (size >= threshold[:, None] - 1e-6))
    won = np.asarray(jnp.argmax(logits_fn(KEY, state.point), 1) != 0)
    before = threshold
  assert state.found.all()


@pytest.mark.parametrize("broken", [0.0, np.nan])
def test_a_failure_keeps_the_clean_input(broken):
  logits_fn = victims.linear(np.zeros((6, 2)), [1.0 + broken, 0.0])
  x = jnp.full((2, 6), 0.5)
  attack = sigma_zero(num_steps=3)
  for state in cases.states(attack, logits_fn, x, jnp.zeros(2, int)):
    assert np.isfinite(state.point).all()
  np.testing.assert_array_equal(state.x_adv, x)
  # Logits that are no numbers are misclassified where they are.
  assert (state.found == np.isnan(broken)).all()


def test_an_input_that_is_wrong_already_is_its_own_result():
  logits_fn = victims.binary(np.ones(6), -1.0)
  x = jnp.full((2, 6), 0.5)
  state = next(cases.states(sigma_zero(), logits_fn, x, jnp.zeros(2, int)))
  assert state.found.all() and state.done.all()
  np.testing.assert_array_equal(state.x_adv, x)


@pytest.mark.parametrize(
  "options",
  [
    {"num_steps": 0},
    {"step_size": 0.0},
    {"sigma": 0.0},
    {"threshold": -1.0},
    {"threshold_rate": -1.0},
    {"bounds": (1.0, 0.0)},
  ],
)
def test_refuses_senseless_options(options):
  with pytest.raises(ValueError, match=next(iter(options))):
    sigma_zero(**options)
