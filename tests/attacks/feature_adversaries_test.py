"""Feature adversaries against the closed form of linear features."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import balls, criteria, engine, losses, models
from jaxadv.attacks.feature_adversaries import feature_adversaries
from tests import contract, victims

KEY = jax.random.key(0)
KEYS = jax.random.split(KEY, 4)
_RNG = np.random.default_rng(0)
X = _RNG.uniform(0.3, 0.7, size=(4, 20)).astype(np.float32)


def test_a_guide_within_reach_is_matched_exactly():
  """Orthonormal features: the gradient leads straight to the guide's."""
  rng = np.random.default_rng(1)
  w = np.linalg.qr(rng.normal(size=(20, 3)))[0]
  logits_fn = victims.linear(w, np.zeros(3))
  guides = np.clip(X + rng.uniform(-0.05, 0.05, X.shape), 0, 1)
  y = jnp.asarray(guides @ w, jnp.float32)
  attack = feature_adversaries(balls.L2(1.0), num_steps=200, step_size=0.001)
  x_adv = engine.run(attack, logits_fn, KEY, X, y)
  np.testing.assert_allclose(np.asarray(x_adv) @ w, y, atol=2e-3)


def test_a_guide_out_of_reach_is_approached_to_the_edge_of_the_ball():
  """One feature: every coordinate goes by eps, with the sign of its weight."""
  w = np.random.default_rng(2).normal(size=(20, 1))
  w = np.where(np.abs(w) < 0.1, 0.1, w)
  y = jnp.asarray(X @ w + np.asarray([[100.0], [-100], [100], [-100]]))
  attack = feature_adversaries(balls.Linf(0.05), num_steps=20, step_size=0.01)
  record = engine.craft(
    attack, victims.linear(w, np.zeros(1)), KEY, X, y,
    criterion=criteria.never, progress=False,
  )  # fmt: skip
  signs = np.sign(w[:, 0])[None] * np.asarray([[1], [-1], [1], [-1]])
  np.testing.assert_allclose(record.x_adv, X + 0.05 * signs, atol=1e-6)
  # The whole budget, and not one gradient more.
  np.testing.assert_array_equal(record.backwards, 20)


def _layers(variables, x):
  first = jnp.tanh(x @ variables)
  return {"first": first, "squares": (jnp.square(first), x[:, :2])}


def test_features_may_be_a_pytree_of_layers():
  w = np.random.default_rng(3).normal(size=(20, 5))
  features_fn = models.bind(_layers, jnp.asarray(w))
  guides = jnp.asarray(np.clip(X[::-1], 0, 1))
  y = features_fn(KEYS, guides)
  attack = feature_adversaries(balls.Linf(0.2), num_steps=100, step_size=0.01)
  before = jax.vmap(losses.closeness)(features_fn(KEYS, jnp.asarray(X)), y)
  x_adv = contract.drive(attack, features_fn, KEYS, X, y).state.x_adv
  after = jax.vmap(losses.closeness)(features_fn(KEYS, x_adv), y)
  assert (after > 0.2 * before).all()


def test_closeness_is_half_the_squared_distance_of_all_layers():
  features = {"a": jnp.asarray([1.0, 2.0]), "b": jnp.asarray([[3.0]])}
  guide = {"a": jnp.asarray([0.0, 4.0]), "b": jnp.asarray([[1.0]])}
  np.testing.assert_allclose(losses.closeness(features, guide), -4.5)


def test_refuses_senseless_options():
  ball = balls.Linf(0.1)
  with pytest.raises(ValueError, match="num_steps"):
    feature_adversaries(ball, num_steps=0, step_size=0.1)
  with pytest.raises(ValueError, match="step_size"):
    feature_adversaries(ball, step_size=-0.1)
