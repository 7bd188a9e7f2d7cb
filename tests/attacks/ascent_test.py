"""The parts of projected gradient ascent: starts, rules, keys, order."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxadv import attacks, balls, criteria
from tests import contract, victims

_RNG = np.random.default_rng(0)
_X = _RNG.uniform(size=(5, 5, 5, 1)).astype(np.float32)
_KEYS = jax.random.split(jax.random.key(0), 5)
_BALLS = [balls.Linf(0.1), balls.L2(0.5), balls.L1(2.0)]


def _victim(seed=0):
  return victims.ordinary(25, 4, seed)


_Y = victims.logits(_victim(), _X).argmax(axis=1).astype(np.int32)


def _ascent(ball, optimizer, **parts):
  parts = {"num_steps": 3, "criterion": criteria.never} | parts
  return attacks.projected_gradient(ball, optimizer, **parts)


@pytest.mark.parametrize("ball", _BALLS, ids=repr)
def test_starts_at_a_random_valid_point_of_the_ball(ball):
  attack = attacks.pgd(ball, step_size=0.1)
  start = attack.init(_KEYS, jnp.asarray(_X), _Y)
  moved = np.asarray(start.x_adv) - _X
  assert start.x_adv.min() >= 0 and start.x_adv.max() <= 1
  norms = np.asarray(jax.vmap(ball.norm)(moved))
  assert (norms > 0.2 * ball.eps).all() and (norms <= ball.eps + 1e-6).all()
  assert len(np.unique(moved[:, 2, 2, 0])) == 5
  assert not start.found.any() and not start.done.any()


def test_starts_at_the_input_or_anywhere_in_the_bounds():
  ball = balls.Linf(float("inf"))
  starts = [
    np.asarray(
      _ascent(ball, optax.sgd(1.0), start=start, bounds=bounds)
      .init(_KEYS, jnp.asarray(_X), _Y)
      .x_adv
    )
    for start, bounds in (
      (attacks.at_input, (0.0, 1.0)),
      (attacks.in_bounds, (0.0, 1.0)),
      (attacks.in_bounds, (-1.0, 3.0)),
    )
  ]
  np.testing.assert_array_equal(starts[0], _X)
  for noise, (low, high) in zip(starts[1:], [(0, 1), (-1, 3)], strict=True):
    size = high - low
    assert low <= noise.min() < low + 0.1 * size
    assert high - 0.1 * size < noise.max() <= high
    # Whatever the input is, the start is the same noise.
    assert abs(np.corrcoef(noise.ravel(), _X.ravel())[0, 1]) < 0.3


def test_any_optax_transformation_climbs():
  """Two steps of gradient ascent with momentum, by hand."""
  w = np.random.default_rng(1).normal(size=25)
  victim, y = victims.binary(w, 0.0), np.zeros(5, np.int32)
  x = 0.5 + 0.1 * (_X - 0.5)
  attack = _ascent(balls.Linf(0.3), optax.sgd(0.02, momentum=0.5), num_steps=2)
  found = contract.drive(attack, victim, _KEYS, x, y).state.x_adv

  def gradient(x):
    z = x.reshape(5, 25) @ w
    return ((1 / (1 + np.exp(-z)))[:, None] * w).reshape(x.shape)

  first = gradient(x)
  second = 0.5 * first + gradient(x + 0.02 * first)
  by_hand = np.clip(x + 0.02 * (first + second), 0, 1)
  np.testing.assert_allclose(found, by_hand, atol=1e-5)


def test_weight_decay_pulls_towards_the_clean_input():
  moved = []
  for weight in (0.0, 0.5):
    rule = optax.chain(optax.add_decayed_weights(weight), optax.sgd(0.05))
    attack = _ascent(balls.L2(10.0), rule, num_steps=10)
    x_adv = contract.drive(attack, _victim(), _KEYS, _X, _Y).state.x_adv
    moved.append(np.linalg.norm((x_adv - _X).reshape(5, -1), axis=1))
  assert (moved[1] < moved[0]).all()


@pytest.mark.parametrize("ball", _BALLS, ids=repr)
def test_projects_around_the_input_not_around_the_last_point(ball):
  attack = _ascent(ball, optax.sgd(5.0), num_steps=15, start=attacks.in_ball)
  x_adv = contract.drive(attack, _victim(), _KEYS, _X, _Y).state.x_adv
  norms = np.asarray(jax.vmap(ball.norm)(x_adv - _X))
  assert (norms <= ball.eps * (1 + 1e-5) + 1e-6).all()
  assert (norms > 0.3 * ball.eps).all()


def test_a_row_stops_at_the_point_where_the_criterion_held():
  attack = attacks.pgd(balls.Linf(0.3), num_steps=20, step_size=0.02)
  result = contract.drive(attack, _victim(), _KEYS, _X, _Y)
  assert result.state.found.all() and len(np.unique(result.steps)) > 1
  for i in range(5):
    cut = attack._replace(num_steps=int(result.steps[i]) - 1)
    before = contract.drive(cut, _victim(), _KEYS, _X, _Y).state
    np.testing.assert_array_equal(before.x_adv[i], result.state.x_adv[i])
    assert not before.found[i]


def test_every_step_of_every_row_has_a_key_of_its_own():
  heard = []

  def record(keys, x):
    heard.append(np.asarray(jax.random.key_data(keys)))
    return _victim()(keys, x)

  attack = attacks.pgd(balls.Linf(0.1), num_steps=3, step_size=0.02)
  with jax.disable_jit():
    state = attack.init(_KEYS, jnp.asarray(_X), _Y)
    for _ in range(3):
      state, _ = attack.step(record, state)
  # The start was drawn with the rows' keys themselves.
  used = np.concatenate([jax.random.key_data(_KEYS), *heard])
  assert len(np.unique(used, axis=0)) == 5 * 4


def test_bounds_are_leaves_and_kept():
  before = None
  for high in (1.0, 0.8):
    x = np.clip(_X, 0, high)
    attack = attacks.pgd(
      balls.Linf(0.5), num_steps=3, step_size=0.3, bounds=(0.0, high)
    )
    x_adv = contract.drive(attack, _victim(), _KEYS, x, _Y).state.x_adv
    assert x_adv.max() == np.float32(high)
    if before is not None:
      assert victims.CALLS["mixed"] == before
    before = victims.CALLS["mixed"]
