"""The model asked afresh: every row once, with keys of its own."""

import jax
import numpy as np

from jaxadv import balls, criteria, judge
from tests import victims

_KEY = jax.random.key(0)
_X = np.random.default_rng(0).uniform(size=(7, 2, 2, 1)).astype(np.float32)


def test_outputs_do_not_depend_on_the_batch_size():
  for victim in (victims.ordinary(4, 3), victims.stochastic(4, 3)):
    whole = judge.outputs(victim, _KEY, _X, batch_size=7)
    assert whole.shape == (7, 3)
    for batch_size in (1, 3, 16):
      parts = judge.outputs(victim, _KEY, _X, batch_size=batch_size)
      np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(
    judge.outputs(victims.ordinary(4, 3), _KEY, _X, batch_size=3),
    victims.logits(victims.ordinary(4, 3), _X),
    rtol=1e-5,
    atol=1e-6,
  )


def test_draws_differ_between_rows_and_keys_and_from_the_attack():
  stochastic = victims.stochastic(4, 3)
  same = np.repeat(_X[:1], 7, axis=0)
  drawn = judge.outputs(stochastic, _KEY, same, batch_size=3)
  assert len(np.unique(drawn.round(5), axis=0)) == 7
  other = judge.outputs(stochastic, jax.random.key(1), same, batch_size=3)
  assert not np.isclose(drawn, other).all(axis=1).any()
  # An attack's step 0 uses fold_in(fold_in(key, index), 0).
  keys = jax.vmap(jax.random.fold_in, (None, 0))(_KEY, np.arange(7))
  attack_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, 0)
  for used in (keys, attack_keys):
    heard = np.asarray(stochastic(used, same))
    assert not np.isclose(drawn, heard).all(axis=1).any()


def test_success_is_the_criterion_at_each_row():
  victim = victims.ordinary(4, 3)
  best = victims.logits(victim, _X).argmax(axis=1)
  labels = np.where(np.arange(7) < 3, best, (best + 1) % 3)
  won = judge.success(
    victim, _KEY, _X, labels, criteria.misclassified, batch_size=4
  )
  np.testing.assert_array_equal(won, np.arange(7) >= 3)
  pair = judge.success(
    victim,
    _KEY,
    _X,
    (labels, best),
    criteria.misclassified_pair,
    batch_size=4,
  )
  np.testing.assert_array_equal(pair, won)


def test_new_weights_compile_nothing():
  judge.outputs(victims.ordinary(4, 3), _KEY, _X, batch_size=3)
  before = victims.CALLS["mixed"]
  judge.outputs(victims.ordinary(4, 3, seed=1), _KEY, _X, batch_size=3)
  assert victims.CALLS["mixed"] == before


def test_rounding_is_in_the_units_of_the_inputs():
  """In a range of 1e-5 a radius of 1e-7 must not be exceeded eightfold."""
  x = np.full((1, 4), 5e-6, np.float32)
  ball, bounds = balls.Linf(1e-7), (0.0, 1e-5)
  for factor, expected in ((1.0, True), (1.1, False), (8.0, False)):
    moved = x + np.float32(factor * 1e-7)
    assert judge.inside(ball, x, moved, bounds=bounds)[0] == expected
