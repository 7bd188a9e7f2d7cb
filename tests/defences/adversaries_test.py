"""The attacks of training on a linear model, whose gradient is constant."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import attacks, balls, criteria, engine
from jaxadv.defences import adversaries
from tests import victims

_EPS = 0.1
_BALL = balls.Linf(_EPS)
_KEY = jax.random.key(0)
# Away from the bounds, so that nothing but the ball binds.
_X = jnp.full((64, 3), 0.5)
_Y = jnp.zeros(64, jnp.int32)
# Two classes with z_1 - z_0 = x_0 - x_1 - 2: class 0 always wins.
_SIGN = np.array([1.0, -1.0, 0.0])
_VICTIM = victims.binary(_SIGN, -2.0)


def _delta(attack, x=_X, y=_Y, victim=_VICTIM):
  return np.asarray(engine.run(attack, victim, _KEY, x, y) - x)


def test_rs_fgsm_steps_1_25_eps_from_a_uniform_start():
  delta = _delta(adversaries.rs_fgsm(_BALL))
  # u + 1.25 eps, clipped to eps: eps in 5 of 8 cases, else above eps / 4.
  moved = delta * _SIGN
  for column in (0, 1):
    at_edge = moved[:, column] > _EPS - 1e-6
    assert 0.45 < at_edge.mean() < 0.8
    assert (moved[:, column] >= 0.25 * _EPS - 1e-6).all()
  # Without gradient the coordinate keeps its uniform start.
  assert delta[:, 2].std() == pytest.approx(_EPS / np.sqrt(3), rel=0.2)
  assert np.abs(delta).max() <= _EPS + 1e-6
  own = _delta(adversaries.rs_fgsm(_BALL, step_size=1e-9))
  assert (np.abs(own) < _EPS).all() and np.abs(own).max() > 0.9 * _EPS


def test_rs_fgsm_starts_beyond_the_bounds_and_ends_within():
  x = jnp.full((64, 3), 0.98)
  asked = []

  def victim(keys, x):
    jax.debug.callback(lambda x: asked.append(np.asarray(x)), x)
    return _VICTIM(keys, x)

  result = engine.run(
    adversaries.rs_fgsm(_BALL), jax.tree_util.Partial(victim), _KEY, x, _Y
  )
  jax.effects_barrier()
  assert len(asked) == 1
  # Uniform in the ball: beyond the bounds in two of five coordinates.
  assert 0.3 < (asked[0] > 1.0).mean() < 0.5
  assert np.abs(asked[0] - x).max() <= _EPS + 1e-6
  assert float(result.max()) == 1.0
  assert np.abs(result - x).max() <= _EPS + 1e-6


def test_n_fgsm_does_not_project():
  delta = _delta(adversaries.n_fgsm(_BALL))
  # Uniform in 2 eps, then one step of eps: nothing else.
  for column in (0, 1):
    moved = delta[:, column] * _SIGN[column]
    assert moved.min() > -_EPS and moved.max() < 3 * _EPS + 1e-6
    assert moved.max() > 2.7 * _EPS
    assert moved.mean() == pytest.approx(_EPS, abs=0.04)
  assert delta[:, 2].std() == pytest.approx(2 * _EPS / np.sqrt(3), rel=0.2)
  x = jnp.full((8, 3), 0.98)
  assert (
    float(x[0, 0] + _delta(adversaries.n_fgsm(_BALL), x, _Y[:8]).max()) <= 1
  )


def test_n_fgsm_in_l2():
  delta = _delta(adversaries.n_fgsm(balls.L2(_EPS), noise=0.0, step_size=0.3))
  np.testing.assert_allclose(
    delta, np.tile(0.3 * _SIGN / np.sqrt(2), (64, 1)), atol=1e-6
  )


def test_n_fgsm_of_a_masked_ball_moves_what_is_allowed():
  allowed = jnp.array([True, False, True])
  delta = _delta(adversaries.n_fgsm(balls.Masked(_BALL, allowed)))
  assert np.all(delta[:, 1] == 0)
  assert (delta[:, 0] * _SIGN[0]).max() > 2.7 * _EPS


def test_trades_starts_beside_the_input_and_maximises_the_divergence():
  nearby = adversaries.trades(_BALL, num_steps=1, step_size=1e-9)
  p = jax.nn.softmax(jnp.asarray(victims.logits(_VICTIM, _X)))
  delta = _delta(nearby, y=p)
  assert delta.std() == pytest.approx(1e-3, rel=0.15)
  delta = _delta(adversaries.trades(_BALL, num_steps=10, step_size=0.02), y=p)
  # Both directions change the prediction; a row keeps the one it began with.
  np.testing.assert_allclose(np.abs(delta[:, :2]), _EPS, atol=1e-6)
  assert (delta[:, 0] * delta[:, 1] < 0).all()
  signs = np.sign(delta[:, 0])
  assert -1 in signs and 1 in signs


def test_mart_is_cross_entropy_from_beside_the_input():
  delta = _delta(adversaries.mart(_BALL, num_steps=10, step_size=0.02))
  np.testing.assert_allclose(
    delta[:, :2], np.tile(_EPS * _SIGN[:2], (64, 1)), atol=1e-6
  )
  assert np.abs(delta[:, 2]).max() < 0.01


def test_pgd_spends_its_budget_on_what_is_wrong_already():
  victim = victims.binary(_SIGN, 2.0)
  delta = _delta(adversaries.pgd(_BALL, step_size=0.05), victim=victim)
  np.testing.assert_allclose(
    delta[:, :2], np.tile(_EPS * _SIGN[:2], (64, 1)), atol=1e-6
  )


def _stepper(step_size):
  # From the input: after k steps the point is k steps away.
  return attacks.basic_iterative(
    balls.Linf(1.0),
    num_steps=8,
    step_size=step_size,
    criterion=criteria.never,
    bounds=(-4.0, 4.0),
  )


@pytest.mark.parametrize(("tau", "steps"), [(0, 3), (1, 4), (2, 5), (20, 8)])
def test_friendly_stops_tau_steps_after_the_boundary(tau, steps):
  # Class 1 wins where x_0 > 0.55; steps of 0.1 from 0.3 get there in three.
  victim = victims.binary(np.array([1.0, 0.0, 0.0]), -0.55)
  attack = adversaries.friendly(_stepper(0.1), tau)
  x = jnp.full((2, 3), 0.3).at[1, 0].set(-3.0)
  result = engine.run(attack, victim, _KEY, x, _Y[:2])
  np.testing.assert_allclose(result[0, 0] - 0.3, 0.1 * steps, atol=1e-5)
  # A row that never gets there uses the whole budget.
  np.testing.assert_allclose(result[1, 0] + 3.0, 0.8, atol=1e-5)


def test_friendly_costs_less():
  victim = victims.counted(victims.binary(_SIGN, 2.0))
  before = victims.asked()["calls"]
  engine.run(adversaries.friendly(_stepper(0.1)), victim, _KEY, _X, _Y)
  assert victims.asked()["calls"] - before == 1


def test_from_source_attacks_the_chosen_model_alone():
  own = victims.counted(_VICTIM)
  other = victims.binary(-_SIGN, -2.0)
  fgsm = attacks.fgsm(_BALL, criterion=criteria.never)
  for index, sign, calls in ((0, 1.0, 1), (1, -1.0, 0)):
    before = victims.asked()["calls"]
    attack = adversaries.from_source(fgsm, [other], index)
    delta = _delta(attack, victim=own)
    np.testing.assert_allclose(
      delta, np.tile(sign * _EPS * _SIGN, (64, 1)), atol=1e-6
    )
    assert victims.asked()["calls"] - before == calls


def test_refuses_bad_numbers():
  with pytest.raises(ValueError, match="noise must be >= 0"):
    adversaries.n_fgsm(_BALL, noise=-1.0)
  with pytest.raises(ValueError, match="tau must be >= 0"):
    adversaries.friendly(adversaries.rs_fgsm(_BALL), -1)


def test_friendly_starts_of_rs_fgsm_end_within_the_bounds():
  x, y = jnp.full((64, 3), 0.98), jnp.ones(64, jnp.int32)  # Wrong at once.
  attack = adversaries.friendly(adversaries.rs_fgsm(_BALL))
  result = engine.run(attack, _VICTIM, _KEY, x, y)
  assert float(result.max()) == 1.0
