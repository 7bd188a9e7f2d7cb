"""Carlini and Wagner's L0 against closed forms and its rule by hand."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import criteria, engine, losses
from jaxadv.attacks.carlini_wagner_l0 import _still_free, carlini_wagner_l0
from tests import victims
from tests.attacks import minimum_norm_cases as cases

KEY = cases.KEY
craft = functools.partial(engine.craft, progress=False)
# Few values of c: each that fails costs `num_steps`.
SHORT = functools.partial(
  carlini_wagner_l0, num_steps=100, learning_rate=0.05, c_range=(1e-2, 1e4)
)


def test_finds_the_distance_of_a_linear_model():
  """The least number of coordinates whose room makes up for the lead."""
  rng = np.random.default_rng(0)
  normal = rng.normal(size=40)
  x = rng.uniform(0.48, 0.52, size=(6, 40)).astype(np.float32)
  lead = np.linspace(0.5, 5.0, 6)
  found, exact = [], []
  for row, gap in zip(x, lead, strict=True):
    logits_fn = victims.binary(normal, -gap - row @ normal)
    record = craft(SHORT(), logits_fn, KEY, row[None], np.zeros(1, int))
    assert record.success[0]
    found.append(record.distance["l0"][0])
    room = np.where(normal > 0, 1 - row, row) * np.abs(normal)
    exact.append(1 + np.sum(np.cumsum(np.sort(room)[::-1]) < gap))
  np.testing.assert_allclose(found, exact, rtol=0.05)


def test_a_pixel_is_all_its_channels():
  """The second pixel is the strongest, though no channel of it is."""
  w = np.zeros((2, 2, 3))
  w[0, 0] = [1.0, 0.0, 0.0]
  w[0, 1] = [0.8, -0.8, 0.8]
  w[1, 1] = [0.0, 0.9, 0.0]
  x = np.full((1, 2, 2, 3), 0.5, np.float32)
  logits_fn = victims.binary(w.ravel(), -0.5 * w.sum() - 0.9)
  record = craft(SHORT(), logits_fn, KEY, x, np.zeros(1, int))
  changed = (record.x_adv != x).any(axis=-1)[0]
  np.testing.assert_array_equal(changed, [[False, True], [False, False]])
  state = cases.start(SHORT(), x, np.zeros(1))
  assert state.free.shape == (1, 2, 2, 1)


def test_the_least_are_frozen_by_hand():
  # 16 of 20 moved: ceil(0.3 * 4) = 2 at once, if the second is minor.
  every, moved = np.ones(20, bool), np.arange(20) < 16
  changes = np.where(moved, 1.0, 0.0)
  changes[[3, 7, 11]] = [0.0010, -0.0005, 0.0020]
  free = _still_free(every, jnp.asarray(moved), jnp.asarray(changes))
  np.testing.assert_array_equal(np.flatnonzero(~free), [3, 7])
  # Of equals only one, the first; and what did not move stays free.
  moved[0] = False
  free = _still_free(every, jnp.asarray(moved), jnp.ones(20))
  np.testing.assert_array_equal(np.flatnonzero(~free), [1])
  # The channels of a pixel count together, and do not cancel.
  changes = jnp.asarray([[[0.3, -0.3], [0.25, 0.25], [0.4, 0.0]]])
  every = jnp.ones((1, 3, 1), bool)
  free = _still_free(every, every, changes)
  np.testing.assert_array_equal(free[..., 0], [[True, True, False]])


def test_searches_free_ever_fewer_pixels_and_the_count_is_exact():
  rng = np.random.default_rng(1)
  w = rng.normal(size=(30, 3))
  x = rng.uniform(0.2, 0.8, size=(4, 30)).astype(np.float32)
  logits_fn = victims.linear(w, [0.0, 0.0, 0.0])
  label = victims.logits(logits_fn, x).argmax(axis=1)
  states = cases.drive(SHORT(), logits_fn, x, label, 1000)
  free, best = np.asarray(states.free), np.asarray(states.distance)
  assert (free[1:] <= free[:-1]).all() and (best[1:] <= best[:-1]).all()
  assert (free[-1].sum(axis=-1) < 20).all()
  # A frozen pixel is x, exactly; and c never falls.
  for i in range(0, 1000, 50):
    changed = np.asarray(states.x_adv[i]) != x
    found = np.asarray(states.found[i])
    np.testing.assert_array_equal(changed.sum(axis=1)[found], best[i][found])
    asked = victims.logits(logits_fn, states.x_adv[i]).argmax(axis=1)
    assert (asked != label)[found].all()
  assert (states.c[1:] >= states.c[:-1]).all() and states.found[-1].all()


def test_reaches_a_target():
  rng = np.random.default_rng(1)
  w = rng.normal(size=(30, 3))
  x = rng.uniform(0.2, 0.8, size=(4, 30)).astype(np.float32)
  logits_fn = victims.linear(w, [0.0, 0.0, 0.0])
  target = (victims.logits(logits_fn, x).argmax(axis=1) + 1) % 3
  attack = SHORT(
    loss_fn=losses.targeted_margin, criterion=criteria.classified_as
  )
  won = {"criterion": criteria.classified_as}
  record = craft(attack, logits_fn, KEY, x, target.astype(np.int32), **won)
  assert record.success.all()


def test_an_input_that_is_wrong_already_is_its_own_result():
  logits_fn = victims.linear(np.eye(2), [1.0, 1.0])
  x = np.asarray([[0.9, 0.1], [0.0, 1.0]], np.float32)
  record = craft(SHORT(), logits_fn, KEY, x, np.asarray([1, 0]))
  np.testing.assert_array_equal(record.x_adv, x)
  np.testing.assert_array_equal(record.steps, 1)


@pytest.mark.parametrize("offset", [1000.0, np.nan])
def test_a_failure_keeps_the_clean_input(offset):
  logits_fn = victims.linear(np.eye(2), [offset, 0.0])
  x = np.full((2, 2), 0.6, np.float32)
  attack = SHORT(num_steps=5, c_range=(1.0, 3.0))
  states = cases.drive(attack, logits_fn, x, np.zeros(2, int), 10)
  np.testing.assert_array_equal(states.x_adv[-1], x)
  # Logits that are no numbers are misclassified where they are.
  assert (states.found == np.isnan(offset)).all() and states.done[-1].all()
  assert np.isfinite(states.hidden).all()


@pytest.mark.parametrize(
  ("options", "name"),
  [
    ({"num_searches": 0}, "num_searches"),
    ({"num_steps": 0}, "num_steps"),
    ({"learning_rate": 0.0}, "learning_rate"),
    ({"confidence": -0.1}, "confidence"),
    ({"c_range": (1.0, 0.5)}, "c_range"),
    ({"c_range": 1.0}, "c_range must be a pair"),
    ({"bounds": (1.0, 0.0)}, "bounds"),
  ],
)
def test_refuses_senseless_options(options, name):
  with pytest.raises(ValueError, match=name):
    carlini_wagner_l0(**options)
