"""Carlini and Wagner's Linf against closed forms and its rule by hand."""

import functools

import jax
import numpy as np
import pytest

from jaxadv import criteria, engine, losses
from jaxadv.attacks.carlini_wagner_linf import carlini_wagner_linf
from jaxadv.attacks.penalised import from_hidden
from tests import victims
from tests.attacks import minimum_norm_cases as cases

KEY = cases.KEY
craft = functools.partial(engine.craft, progress=False)
SHORT = functools.partial(
  carlini_wagner_linf, num_searches=40, num_steps=40, learning_rate=0.02
)


def problem(num_classes=2):
  """Inputs in the middle of the box, boundaries 0.1 and more away."""
  rng = np.random.default_rng(0)
  w = rng.normal(size=(12, num_classes))
  x = rng.uniform(0.4, 0.6, size=(5, 12)).astype(np.float32)
  b = -0.5 * w.sum(axis=0)
  label = np.argmax(x @ w + b, axis=1)
  # Moves every label's logit ahead, so nobody is wrong from the start.
  b = b + 2.0 * (np.arange(num_classes) == 0)
  label = np.argmax(x @ w + b, axis=1).astype(np.int32)
  return w, b, x, label


def test_finds_the_distance_of_a_linear_model():
  w, b, x, label = problem()
  attack = carlini_wagner_linf(num_steps=300, decrease=0.995)
  record = craft(attack, victims.linear(w, b), KEY, x, label)
  exact = victims.linear_distance(w, b, x, label, 1)
  assert record.success.all()
  np.testing.assert_allclose(record.distance["linf"], exact, rtol=0.01)


def test_tau_and_c_follow_the_searches_by_hand():
  x, label = victims.blobs(6)
  logits_fn = victims.trained()
  # Long steps: the first win is far from the nearest.
  attack = SHORT(learning_rate=0.1, c_range=(1e-2, 1.0))
  states = cases.drive(attack, logits_fn, x, label, 400)
  states = jax.tree.map(np.asarray, states._replace(keys=None))
  later = np.asarray(from_hidden((0.0, 1.0), states.hidden)[0])
  asked = np.concatenate([x[None], later])
  logits = victims.logits(logits_fn, asked.reshape(-1, *x.shape[1:]))
  won = logits.reshape(401, 6, -1).argmax(axis=2) != label[None]
  tau, c, taken = np.ones(6), np.full(6, 1e-2), np.zeros(6, int)
  running, wins, fails = np.ones(6, bool), 0, 0
  for i in range(400):
    size = np.abs(asked[i] - x).reshape(6, -1)
    # Where a point wins, the margin costs nothing.
    excess = np.maximum(size - tau[:, None], 0).sum(axis=1)
    solved = won[i] & (excess < 1e-4 * c)
    taken += 1
    failed = ~solved & (taken >= 40)
    tau = np.where(solved, 0.9 * np.minimum(tau, size.max(axis=1)), tau)
    c = np.where(failed, 2 * c, c)
    taken = np.where(solved | failed, 0, taken)
    np.testing.assert_allclose(states.tau[i][running], tau[running], rtol=1e-4)
    np.testing.assert_allclose(states.c[i][running], c[running], rtol=1e-5)
    wins, fails = wins + np.sum(solved & running), fails + np.sum(failed)
    running = ~states.done[i]
  assert wins > 6 and fails > 10


def test_a_row_is_done_where_c_or_tau_are_at_their_end():
  # The boundary is nearer than 1/256, so tau ends the search ...
  logits_fn = victims.binary(np.ones(4), -2.004)
  x = np.full((1, 4), 0.5, np.float32)
  states = cases.drive(SHORT(), logits_fn, x, np.zeros(1, int), 400)
  last = int(np.argmax(states.done[:, 0]))
  assert states.done[-1, 0] and states.tau[last, 0] < 1 / 256
  assert states.distance[-1, 0] < 1.2 / 256
  # ... and there is none, so c does: 1, 2, 4, 8, 16.
  stuck = victims.linear(np.zeros((4, 2)), [1.0, 0.0])
  attack = SHORT(num_steps=10, c_range=(1.0, 10.0))
  states = cases.drive(attack, stuck, x, np.zeros(1, int), 60)
  assert int(np.argmax(states.done[:, 0])) == 39
  assert states.c[-1, 0] >= 16


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1.0, 3.0)])
def test_the_result_is_the_nearest_point_that_won(bounds):
  w, b, x, label = problem(num_classes=3)
  logits_fn = victims.linear(w, b)
  attack = SHORT(bounds=bounds)
  states = cases.drive(attack, logits_fn, x, label, 300)
  best, found = np.full(5, np.inf), np.zeros(5, bool)
  for i in range(300):
    found |= np.asarray(states.found[i])
    now = np.abs(np.asarray(states.x_adv[i]) - x).max(axis=1)
    moved = np.isfinite(np.asarray(states.distance[i]))
    np.testing.assert_allclose(
      states.distance[i][moved], now[moved], rtol=1e-4, atol=1e-7
    )
    assert (np.asarray(states.distance[i]) <= best).all()
    best = np.asarray(states.distance[i])
    asked = victims.logits(logits_fn, states.x_adv[i]).argmax(axis=1)
    assert (asked != label)[np.asarray(states.found[i])].all()
  assert found.all()


def test_reaches_a_target():
  w, b, x, label = problem(num_classes=3)
  target = (label + 1) % 3
  attack = SHORT(
    loss_fn=losses.targeted_margin, criterion=criteria.classified_as
  )
  won = {"criterion": criteria.classified_as}
  record = craft(attack, victims.linear(w, b), KEY, x, target, **won)
  assert record.success.all()


def test_an_input_that_is_wrong_already_is_its_own_result():
  w, b, x, label = problem()
  record = craft(SHORT(), victims.linear(w, b), KEY, x, 1 - label)
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
    ({"decrease": 1.0}, "decrease"),
    ({"c_range": (1.0, 0.5)}, "c_range"),
    ({"c_range": (0.0, 0.5)}, "c_range"),
    ({"bounds": (1.0, 0.0)}, "bounds"),
  ],
)
def test_refuses_senseless_options(options, name):
  with pytest.raises(ValueError, match=name):
    carlini_wagner_linf(**options)
