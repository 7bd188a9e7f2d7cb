"""Carlini and Wagner's L2: closed forms, and one test per known trap."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import criteria, engine, losses, models
from jaxadv.attacks import binary_search
from jaxadv.attacks.carlini_wagner import carlini_wagner
from jaxadv.attacks.penalised import from_hidden, to_hidden
from tests import victims
from tests.attacks import minimum_norm_cases as cases

KEY = cases.KEY
PLAN = binary_search.Plan(9, 200, abort_early=False)
SHORT = binary_search.Plan(4, 40, abort_early=False)
craft = functools.partial(engine.craft, progress=False)


def at_known_distances(shift=0.0):
  """Two classes, and inputs at known L2 distances from their boundary."""
  rng = np.random.default_rng(0)
  w = rng.normal(size=64)
  normal = w / np.linalg.norm(w)
  exact = np.asarray([0.5, 0.75, 1.0, 1.25])
  x = rng.uniform(0.4, 0.6, (4, 64))
  x -= ((x - 0.5) @ normal + exact)[:, None] * normal
  logits_fn = victims.linear(
    np.stack([0 * w, w], axis=1), [shift, shift - 0.5 * w.sum()]
  )
  return logits_fn, x.astype(np.float32), np.zeros(4, np.int32), exact


def two_lines(keys, x):
  """Class 1 wins right of 0.5, class 0 left of it; steep."""
  del keys
  lead = 10 * (x[:, 0] - 0.5)
  return jnp.stack([0 * lead, lead], axis=1)


TWO_LINES = jax.tree_util.Partial(two_lines)


def test_reaches_a_target():
  logits_fn, x, label = cases.in_the_box()
  target = (label + 1) % 4
  attack = carlini_wagner(
    plan=PLAN,
    loss_fn=losses.targeted_margin,
    criterion=criteria.classified_as,
  )
  record = craft(attack, logits_fn, KEY, x, target,
                 criterion=criteria.classified_as)  # fmt: skip
  assert record.success.all()
  won = victims.logits(logits_fn, record.x_adv).argmax(axis=1)
  np.testing.assert_array_equal(won, target)


def test_pixels_at_the_bounds_move():
  """Trap 16: arctanh of the bounds is finite, and has a gradient."""
  w = np.ones(4, np.float32)
  logits_fn = victims.binary(w, -0.2)
  x = np.zeros((1, 4), np.float32)
  record = craft(
    carlini_wagner(plan=PLAN, learning_rate=0.05),
    logits_fn,
    KEY,
    x,
    np.zeros(1, int),
  )
  assert record.success[0]
  np.testing.assert_allclose(record.distance["l2"], 0.1, rtol=0.1)


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-2.0, 6.0)])
def test_points_and_slopes_are_exact_near_the_bounds(bounds):
  low, width = bounds[0], bounds[1] - bounds[0]
  share = np.asarray([0.0, 1e-6, 1e-4, 0.01, 0.3, 0.5, 0.99, 1.0])
  hidden = to_hidden(bounds, jnp.asarray(low + width * share, jnp.float32))
  assert np.isfinite(hidden).all()
  back, slope = from_hidden(bounds, hidden)
  np.testing.assert_allclose(back, low + width * share, atol=1e-6 * width)
  exact = 0.5 * width / np.cosh(np.asarray(hidden, np.float64)) ** 2
  np.testing.assert_allclose(slope, exact, rtol=1e-5)


@pytest.mark.parametrize("shift", [0.0, -100.0, 100.0])
def test_finds_the_distance_of_a_linear_model(shift):
  """Trap 17, too: the best other class where all logits are negative."""
  logits_fn, x, label, exact = at_known_distances(shift)
  # With the defaults but for fewer steps, none of them saved.
  plan = binary_search.Plan(num_steps=1000, abort_early=False)
  attack = carlini_wagner(plan=plan)
  record = craft(attack, logits_fn, KEY, x, label)
  assert record.success.all()
  np.testing.assert_allclose(record.distance["l2"], exact, rtol=0.01)
  assert (record.distance["l2"] >= exact * 0.9999).all()


def test_rows_stop_early_on_their_own():
  """Trap 18: what shares the batch neither stops a row nor keeps it going."""
  logits_fn, x, label = cases.in_the_box()
  attack = carlini_wagner(plan=binary_search.Plan(3, 40))
  together = craft(attack, logits_fn, KEY, x, label)
  assert len(set(together.steps)) > 1
  for i in range(3):
    alone = craft(attack, logits_fn, KEY, x[i : i + 1], label[i : i + 1])
    assert alone.steps[0] == together.steps[i]
    np.testing.assert_allclose(alone.x_adv[0], together.x_adv[i], atol=1e-5)


def test_searches_stop_early_only_where_asked_to():
  logits_fn, x, label = cases.in_the_box()
  plan = binary_search.Plan(3, 40)
  early = craft(carlini_wagner(plan=plan), logits_fn, KEY, x, label)
  plan = plan._replace(abort_early=False)
  full = craft(carlini_wagner(plan=plan), logits_fn, KEY, x, label)
  assert (early.steps < 120).any()
  np.testing.assert_array_equal(full.steps, 120)
  np.testing.assert_array_equal(full.backwards, 120)


def test_the_interval_of_c_is_halved_by_hand():
  """Traps 19 and 21: the ends are the tried values, and the last repeats."""
  plan = binary_search.Plan(10, 1, 1e-3)
  search = binary_search.start(plan, 2)
  wins = [[False, True], [True, False], [False, False]] + 7 * [[True, False]]
  tried = []
  for won in wins:
    tried.append(np.asarray(search.c))
    search = binary_search.advance(plan, search, jnp.asarray(won), jnp.zeros(2))
  np.testing.assert_allclose(
    np.stack(tried)[:4],
    [[1e-3, 1e-3], [1e-2, 5e-4], [5.5e-3, 7.5e-4], [7.75e-3, 8.75e-4]],
    rtol=1e-6,
  )
  # The first row won at ever smaller c, the second never but at 1e-3.
  assert tried[9][0] == tried[8][0]
  assert tried[9][1] == np.float32(1e-3)
  assert binary_search.finished(plan, search).all()


def test_nine_searches_end_with_a_new_c():
  """Trap 21: only ten or more repeat the upper end."""
  plan = binary_search.Plan(9, 1, 1e-3)
  search = binary_search.start(plan, 1)
  for _ in range(8):
    search = binary_search.advance(
      plan, search, jnp.ones(1, bool), jnp.zeros(1)
    )
  np.testing.assert_allclose(search.c, 1e-3 / 2**8)
  plan = binary_search.Plan(11, 1, 1e-3)
  search = binary_search.start(plan, 1)
  for _ in range(10):
    search = binary_search.advance(
      plan, search, jnp.zeros(1, bool), jnp.zeros(1)
    )
  assert search.c[0] == np.float32(1e10)


def test_a_new_search_starts_anew():
  attack = carlini_wagner(plan=binary_search.Plan(2, 5, abort_early=False))
  x, y = np.full((1, 3), 0.3, np.float32), np.zeros(1, int)
  states = cases.drive(attack, TWO_LINES, x, y, 5)
  start = cases.start(attack, x, y)
  assert states.search.number[4, 0] == 1
  np.testing.assert_allclose(states.hidden[4], start.hidden, rtol=1e-6)
  assert not np.allclose(states.hidden[3], start.hidden, rtol=1e-6)
  last = jax.tree.map(lambda leaf: leaf[4], states.optimizer)
  for now, then in zip(
    jax.tree.leaves(last), jax.tree.leaves(start.optimizer), strict=True
  ):
    np.testing.assert_array_equal(now, then)


def test_confidence_is_met_by_the_result():
  """Trap 20: the label leads no more, and by as much as asked."""
  logits_fn, x, label = cases.in_the_box()
  attack = carlini_wagner(plan=PLAN, confidence=0.5)
  record = craft(attack, logits_fn, KEY, x, label)
  assert record.success.all()
  logits = victims.logits(logits_fn, record.x_adv)
  margin = jax.vmap(losses.margin)(jnp.asarray(logits), jnp.asarray(label))
  np.testing.assert_allclose(margin, 0.5, atol=0.05)
  assert float(margin.min()) >= 0.5 - 1e-5


def test_the_distance_is_that_to_the_clean_input_itself():
  """Trap 21: a point that is x but for rounding is no better than x."""
  x = np.asarray([[0.45, 1.0, 0.0]], np.float32)
  attack = carlini_wagner(plan=SHORT)
  state = cases.start(attack, x, np.ones(1, int))
  states = cases.drive(attack, TWO_LINES, x, np.zeros(1, int), 160)
  delta = np.linalg.norm(states.x_adv[-1] - x, axis=1)
  assert states.found[-1, 0]
  np.testing.assert_allclose(states.distance[-1], delta, rtol=1e-6)
  assert np.isinf(state.distance).all()


def test_an_input_that_is_wrong_already_is_its_own_result():
  logits_fn, x, label = cases.in_the_box()
  x[:, 0] = 0.0
  label = (victims.logits(logits_fn, x).argmax(axis=1) + 1) % 4
  record = craft(carlini_wagner(plan=SHORT), logits_fn, KEY, x, label)
  assert record.success.all()
  np.testing.assert_array_equal(record.x_adv, x)
  np.testing.assert_array_equal(record.steps, 1)


def _broken(variables, x):
  return jnp.stack([variables + x[:, 0], x[:, 1]], axis=1)


@pytest.mark.parametrize("offset", [100.0, np.nan])
def test_a_failure_keeps_the_clean_input(offset):
  """Trap 22: no placeholder, no success that is none."""
  logits_fn = models.bind(_broken, jnp.float32(offset))
  x = np.full((2, 3), 0.6, np.float32)
  plan = binary_search.Plan(2, 10)
  states = cases.drive(
    carlini_wagner(plan=plan), logits_fn, x, np.zeros(2, int), 20
  )
  np.testing.assert_array_equal(states.x_adv[-1], x)
  # Logits that are no numbers are misclassified where they are.
  assert (states.found == np.isnan(offset)).all()
  assert np.isfinite(states.hidden).all()
  assert states.done[-1].all()
  assert (states.done[0] == np.isnan(offset)).all()


def test_success_is_checked_where_the_logits_were_computed():
  """Trap 22: each new best point wins when the model is asked again."""
  logits_fn, x, label = cases.in_the_box()
  states = cases.drive(carlini_wagner(plan=SHORT), logits_fn, x, label, 160)
  for i in range(0, 160, 7):
    found = np.asarray(states.found[i])
    asked = victims.logits(logits_fn, states.x_adv[i])
    assert (asked.argmax(axis=1) != label)[found].all()
  best = np.asarray(states.distance)
  assert (best[1:] <= best[:-1]).all() and np.isfinite(best[-1]).all()


@pytest.mark.parametrize(
  ("options", "name"),
  [
    ({"plan": binary_search.Plan(0)}, "num_searches"),
    ({"plan": binary_search.Plan(9, 0)}, "num_steps"),
    ({"plan": binary_search.Plan(initial_c=0.0)}, "initial_c"),
    ({"learning_rate": 0.0}, "learning_rate"),
    ({"confidence": -1.0}, "confidence"),
    ({"bounds": (1.0, 0.0)}, "bounds"),
  ],
)
def test_refuses_senseless_options(options, name):
  with pytest.raises(ValueError, match=name):
    carlini_wagner(**options)
