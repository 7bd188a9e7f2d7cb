"""The goal-image attack, against a derivation in NumPy."""

import jax
import numpy as np
import pytest

from jaxadv import attacks, criteria
from tests import contract, victims

_RNG = np.random.default_rng(0)
_X = _RNG.uniform(0.3, 0.7, size=(4, 5, 5, 1)).astype(np.float32)
_KEYS = jax.random.split(jax.random.key(0), 4)
_W = _RNG.normal(size=(25, 3))
_GOAL = np.eye(3, dtype=np.float32)[[0, 1, 2, 0]]


def _drive(num_steps=200, x=_X, **options):
  attack = attacks.goal_image(num_steps=num_steps, **options)
  victim = victims.linear(_W, -_W.sum(0) / 2)
  return contract.drive(attack, victim, _KEYS, x, _GOAL)


def _probabilities(x):
  z = np.asarray(x, np.float64).reshape(len(x), -1) @ _W - _W.sum(0) / 2
  p = np.exp(z - z.max(axis=1, keepdims=True))
  return p / p.sum(axis=1, keepdims=True)


def _by_hand(x, num_steps, rate, weight):
  """Descends ||goal - p||^2 / 2 + weight ||x' - x||^2 in the unit box."""
  clean = x = x.astype(np.float64)
  for _ in range(num_steps):
    p = _probabilities(x)
    error = p - _GOAL
    in_logits = p * (error - (p * error).sum(axis=1, keepdims=True))
    slope = (in_logits @ _W.T).reshape(x.shape) + 2 * weight * (x - clean)
    x = np.clip(x - rate * slope, 0, 1)
  return x


@pytest.mark.parametrize(
  ("weight", "rate"), [(0.0, 1.0), (0.05, 1.0), (1, 0.3)]
)
def test_descends_as_derived_by_hand(weight, rate):
  found = _drive(
    4,
    weight=weight,
    learning_rate=rate,
    start=attacks.at_input,
    criterion=criteria.never,
  )
  np.testing.assert_allclose(
    found.state.x_adv, _by_hand(_X, 4, rate, weight), atol=1e-5
  )


def test_reaches_its_goal_from_noise_and_stops_there():
  result = _drive()
  assert result.state.found.all() and (result.steps < 200).all()
  best = _probabilities(result.state.x_adv).argmax(axis=1)
  np.testing.assert_array_equal(best, _GOAL.argmax(axis=1))


def test_going_on_perfects_the_output():
  stopped, perfected = (
    _probabilities(_drive(weight=0.0, criterion=criterion).state.x_adv)
    for criterion in (criteria.resembles, criteria.never)
  )
  rows, goal = np.arange(4), _GOAL.argmax(axis=1)
  assert (perfected[rows, goal] > 0.95).all()
  assert (perfected[rows, goal] >= stopped[rows, goal]).all()
  assert (stopped[rows, goal] < 0.9).any()


def test_weight_pulls_towards_the_input():
  gently = {"learning_rate": 0.1, "criterion": criteria.never}
  distances = []
  for weight in (0.0, 0.05, 0.4):
    result = _drive(400, weight=weight, **gently)
    delta = (np.asarray(result.state.x_adv) - _X).reshape(4, -1)
    distances.append(np.linalg.norm(delta, axis=1))
  assert (distances[2] < distances[1]).all()
  assert (distances[1] < distances[0]).all()
  # Without a pull the start alone decides: whatever the input shows.
  other = _drive(400, x=1 - _X, weight=0.0, **gently)
  same = _drive(400, weight=0.0, **gently)
  np.testing.assert_allclose(other.state.x_adv, same.state.x_adv, atol=1e-4)


def test_refuses_bad_parameters():
  with pytest.raises(ValueError, match="weight must be >= 0"):
    attacks.goal_image(weight=-0.1)
  with pytest.raises(ValueError, match="learning_rate must be > 0"):
    attacks.goal_image(learning_rate=0.0)
