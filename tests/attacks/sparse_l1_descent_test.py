"""SLIDE: which coordinates a step moves, and how far."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import balls, criteria, engine, evaluation
from jaxadv.attacks.sparse_l1_descent import sparse_l1_descent
from tests import victims

KEY = jax.random.key(0)


def _delta(weights, **options):
  x = jnp.full((1, len(weights)), 0.5)
  attack = sparse_l1_descent(criterion=criteria.never, **options)
  logits_fn = victims.binary(weights, -1.0)
  return np.asarray(engine.run(
    attack, logits_fn, KEY, x, jnp.zeros(1, int)
  ))[0] - 0.5  # fmt: skip


def test_a_step_moves_the_largest_gradients_equally():
  weights = np.array([0.1, -3.0, 0.2, 2.0])
  delta = _delta(weights, eps=1.0, num_steps=1, top_fraction=0.5)
  np.testing.assert_allclose(delta, [0, -0.05, 0, 0.05], atol=1e-6)


def test_the_budget_is_used_up_and_kept():
  weights = np.array([0.1, -3.0, 0.2, 2.0])
  delta = _delta(weights, eps=0.3, step_size=0.1, top_fraction=0.5)
  np.testing.assert_allclose(delta, [0, -0.15, 0, 0.15], atol=1e-5)
  x = np.full((1, 4), 0.5, np.float32)
  assert evaluation.inside(balls.L1(0.3), x, x + delta[None]).all()


def test_a_coordinate_at_the_bounds_leaves_the_step_to_the_next():
  # The largest weight has no room; a step moves one coordinate of three.
  x = jnp.asarray([[1.0, 0.5, 0.5]])
  attack = sparse_l1_descent(0.4, criterion=criteria.never)
  logits_fn = victims.binary([3.0, -2.0, 1.0], -9.0)
  x_adv = engine.run(attack, logits_fn, KEY, x, jnp.zeros(1, int))
  np.testing.assert_allclose(x_adv, [[1.0, 0.1, 0.5]], atol=1e-5)


def test_refuses_senseless_options():
  for options in (
    {"num_steps": 0},
    {"step_size": -1.0},
    {"top_fraction": 0.0},
    {"top_fraction": 1.5},
    {"bounds": (1.0, 0.0)},
  ):
    with pytest.raises(ValueError, match=next(iter(options))):
      sparse_l1_descent(1.0, **options)
  with pytest.raises(ValueError, match="eps"):
    sparse_l1_descent(-1.0)
