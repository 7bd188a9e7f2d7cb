"""stAdv on pictures whose pixels tell how far a pixel has to look."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import criteria, engine, losses
from jaxadv.attacks import warping
from jaxadv.attacks.st_adv import roughness, st_adv
from tests import victims
from tests.attacks import minimum_norm_cases as cases

KEY = cases.KEY
SHAPE = (5, 8, 2)


def _ramp():
  """Brighter by 0.1 with every column."""
  ramp = 0.1 * np.arange(SHAPE[1], dtype=np.float32)
  return np.broadcast_to(ramp[None, None, :, None], (1, *SHAPE))


def _watching(row, column, level, weight=1.0):
  """Class 1 where the pixel is brighter than `level`."""
  w = np.zeros(SHAPE)
  w[row, column, 0] = weight
  return victims.binary(w.ravel(), -level * weight)


def test_roughness_by_hand():
  flow = np.zeros((2, 3, 2), np.float32)
  flow[0, 1] = (3.0, 4.0)
  # Three neighbours, each pair counted from both sides.
  np.testing.assert_allclose(roughness(flow), 2 * 3 * 5.0)
  assert roughness(jnp.full((4, 5, 2), 7.0)) == 0
  slope = jax.grad(roughness)(jnp.zeros((3, 3, 2)))
  np.testing.assert_array_equal(slope, 0.0)


@pytest.mark.parametrize(("max_flow", "found"), [(1.55, True), (1.45, False)])
def test_wins_if_a_pixel_may_look_as_far_as_it_has_to(max_flow, found):
  # The pixel shows 0.3 and has to show more than 0.45: 1.5 columns further.
  attack = st_adv(max_flow, num_steps=120, tau=0.0)
  logits_fn = _watching(2, 3, 0.45)
  for state in cases.states(attack, logits_fn, _ramp(), jnp.zeros(1, int)):
    assert np.abs(state.flow).max() <= max_flow
  assert bool(state.found[0]) is found
  if found:
    assert 0.45 < state.x_adv[0, 2, 3, 0] <= 0.3 + 0.1 * max_flow + 1e-6
    # Nothing but the pixel that is watched has moved.
    moved = np.asarray(state.x_adv != _ramp()).any(-1)
    assert moved[0, 2, 3] and moved.sum() == 1
  else:
    np.testing.assert_array_equal(state.x_adv, _ramp())


def test_the_smoothest_winner_is_the_result():
  attack = st_adv(4.0, num_steps=100, learning_rate=0.1)
  logits_fn = _watching(2, 3, 0.45, weight=20.0)
  states = list(cases.states(attack, logits_fn, _ramp(), jnp.zeros(1, int)))
  least, improved = np.inf, 0
  for before, after in itertools.pairwise(states):
    rough = float(roughness(before.flow[0]))
    won = warping.flow(_ramp()[0], before.flow[0])[2, 3, 0] > 0.45
    if won and rough < least:
      least, improved = rough, improved + 1
      asked = warping.flow(_ramp()[0], before.flow[0])
    np.testing.assert_allclose(after.best[0], least, rtol=1e-5)
  assert improved > 1
  np.testing.assert_allclose(states[-1].x_adv[0], asked, atol=1e-6)
  # Smoother than the way there, where the pixel looks afar alone.
  assert least < 2 * 4 * 1.5


def test_the_roughness_counts_from_the_first_win_on():
  # A pixel that moves alone costs 2 * 4 * 0.05 and gains 0.1 a column, so the
  # sum is least where nothing moves.
  attack = st_adv(4.0, num_steps=60)
  logits_fn = _watching(2, 3, 0.35)
  rough = [
    float(roughness(state.flow[0]))
    for state in cases.states(attack, logits_fn, _ramp(), jnp.zeros(1, int))
  ]
  summit = int(np.argmax(rough))
  assert (np.diff(rough[: summit + 1]) > 0).all() and 5 < summit < 30
  assert rough[-1] < 0.5 * rough[summit]


def test_the_first_question_is_the_image_itself_to_the_bit():
  x = np.random.default_rng(0).uniform(size=(2, *SHAPE)).astype(np.float32)
  attack = st_adv(2.0, num_steps=3)
  logits_fn = victims.binary(np.ones(x[0].size), 0.0)
  state = next(cases.states(attack, logits_fn, x, jnp.zeros(2, int)))
  assert state.found.all() and state.done.all()
  np.testing.assert_array_equal(state.x_adv, x)
  np.testing.assert_array_equal(state.best, 0.0)


def test_targeted_reaches_the_target():
  rng = np.random.default_rng(1)
  x = rng.uniform(size=(3, *SHAPE)).astype(np.float32)
  logits_fn = victims.linear(rng.normal(size=(x[0].size, 3)), np.zeros(3))
  target = (victims.logits(logits_fn, x).argmax(1) + 1) % 3
  attack = st_adv(
    2.0,
    num_steps=60,
    loss_fn=losses.targeted_margin,
    criterion=criteria.classified_as,
  )
  x_adv = engine.run(attack, logits_fn, KEY, x, target.astype(np.int32))
  np.testing.assert_array_equal(
    victims.logits(logits_fn, x_adv).argmax(1), target
  )


@pytest.mark.parametrize("broken", [0.0, np.nan])
def test_a_failure_keeps_the_clean_input(broken):
  x = np.full((2, *SHAPE), 0.5, np.float32)
  logits_fn = victims.linear(np.zeros((x[0].size, 2)), [1.0 + broken, 0.0])
  for state in cases.states(
    st_adv(1.0, num_steps=3), logits_fn, x, jnp.zeros(2, int)
  ):
    assert np.isfinite(state.flow).all()
  np.testing.assert_array_equal(state.x_adv, x)
  # Logits that are no numbers are misclassified where they are.
  assert (state.found == np.isnan(broken)).all()


@pytest.mark.parametrize(
  ("options", "words"),
  [
    ({"num_steps": 0}, "num_steps must be at least 1"),
    ({"max_flow": -1.0}, "max_flow must be >= 0"),
    ({"learning_rate": 0.0}, "learning_rate must be > 0"),
    ({"tau": -0.1}, "tau must be >= 0"),
    ({"bounds": (1.0, 0.0)}, "bounds"),
  ],
)
def test_refuses_senseless_options(options, words):
  with pytest.raises(ValueError, match=words):
    st_adv(**({"max_flow": 1.0} | options))


def test_refuses_what_is_no_image():
  logits_fn = victims.binary(np.ones(6), 0.0)
  y = jnp.ones(2, int)
  with pytest.raises(ValueError, match=r"x must hold images \[B, H, W, C\]"):
    engine.run(st_adv(1.0), logits_fn, KEY, jnp.ones((2, 6)), y)
