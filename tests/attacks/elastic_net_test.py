"""EAD against closed forms, its decision rules and the known traps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import criteria, engine, losses
from jaxadv.attacks import binary_search
from jaxadv.attacks.elastic_net import elastic, elastic_net, least_l1
from tests import victims
from tests.attacks import minimum_norm_cases as cases

KEY = cases.KEY
PLAN = binary_search.Plan(9, 150, abort_early=False)
SHORT = binary_search.Plan(4, 12)
craft = functools.partial(engine.craft, progress=False)


def dominant():
  """One weight is so large that moving it alone is the least in L1 and EN."""
  w = np.asarray([4.0, 0.5, -0.4, 0.3], np.float32)
  x = np.full((1, 4), 0.5, np.float32)
  return victims.binary(w, -np.float32(x[0] @ w) - 0.8), x, np.zeros(1, int)


@pytest.mark.parametrize("rule", [elastic, least_l1])
def test_moves_the_one_coordinate_that_counts(rule):
  logits_fn, x, label = dominant()
  attack = elastic_net(plan=PLAN, beta=0.01, rule=rule)
  record = craft(attack, logits_fn, KEY, x, label)
  assert record.success[0]
  np.testing.assert_allclose(record.distance["l1"], 0.2, rtol=0.01)
  assert record.distance["l0"][0] == 1
  np.testing.assert_array_equal(record.x_adv[0, 1:], x[0, 1:])


def test_without_shrinkage_it_finds_the_l2_distance():
  rng = np.random.default_rng(0)
  w = rng.normal(size=12)
  normal = w / np.linalg.norm(w)
  exact = np.asarray([0.1, 0.15, 0.2, 0.25])
  x = rng.uniform(0.4, 0.6, (4, 12))
  x -= ((x - 0.5) @ normal + exact)[:, None] * normal
  logits_fn = victims.binary(w, -0.5 * w.sum())
  attack = elastic_net(plan=PLAN._replace(num_steps=300), beta=0.0)
  label = np.zeros(4, np.int32)
  record = craft(attack, logits_fn, KEY, x.astype(np.float32), label)
  assert record.success.all()
  np.testing.assert_allclose(record.distance["l2"], exact, rtol=0.01)


def test_each_rule_is_best_by_its_own_measure():
  logits_fn, x, label = cases.in_the_box()
  by_elastic = craft(elastic_net(plan=PLAN), logits_fn, KEY, x, label)
  by_l1 = craft(elastic_net(plan=PLAN, rule=least_l1), logits_fn, KEY, x, label)
  assert by_elastic.success.all() and by_l1.success.all()
  for record, other, rule in (
    (by_elastic, by_l1, elastic),
    (by_l1, by_elastic, least_l1),
  ):
    mine = jax.vmap(functools.partial(rule, 1e-3))(record.x_adv - x)
    others = jax.vmap(functools.partial(rule, 1e-3))(other.x_adv - x)
    assert (np.asarray(mine) <= np.asarray(others) + 1e-6).all()
    assert (np.asarray(mine) < 0.999 * np.asarray(others)).any()


def test_the_steps_are_those_of_fista():
  logits_fn, x, label = dominant()
  beta, rate, c, num_steps = 0.003, 0.02, 2.0, 6
  plan = binary_search.Plan(1, num_steps, c, abort_early=False)
  attack = elastic_net(plan=plan, learning_rate=rate, beta=beta)
  states = cases.drive(attack, logits_fn, x, label, num_steps - 1)
  normal = np.asarray([4.0, 0.5, -0.4, 0.3])
  point = before = x[0].astype(np.float64)
  for k in range(num_steps - 1):
    lost = normal @ (point - x[0]) - 0.8 < 0
    grad = 2 * (point - x[0]) - c * lost * normal
    moved = point - rate * np.sqrt(1 - k / num_steps) * grad - x[0]
    shrunk = x[0] + np.sign(moved) * np.maximum(np.abs(moved) - beta, 0)
    shrunk = np.clip(shrunk, 0, 1)
    point = np.clip(shrunk + k / (k + 3) * (shrunk - before), 0, 1)
    before = shrunk
    np.testing.assert_allclose(states.point[k, 0], point, atol=1e-5)


def test_rows_stop_early_on_their_own():
  logits_fn, x, label = cases.in_the_box()
  attack = elastic_net(plan=binary_search.Plan(4, 40))
  together = craft(attack, logits_fn, KEY, x, label)
  alone = craft(attack, logits_fn, KEY, x[:1], label[:1])
  assert len(set(together.steps)) > 1
  assert alone.steps[0] == together.steps[0]
  np.testing.assert_allclose(alone.x_adv[0], together.x_adv[0], atol=1e-5)


def test_an_early_abort_costs_little():
  logits_fn, x, label = cases.in_the_box()
  early, whole = (
    craft(
      elastic_net(
        plan=binary_search.Plan(9, 100, abort_early=jnp.asarray(abort)),
        rule=least_l1, beta=0.01,
      ), logits_fn, KEY, x, label,
    )
    for abort in (True, False)
  )  # fmt: skip
  assert (early.steps < whole.steps).all()
  assert (early.distance["l1"] <= 1.045 * whole.distance["l1"]).all()


def test_progress_is_that_of_the_best_point():
  logits_fn, x, label = cases.in_the_box()
  attack = elastic_net(plan=binary_search.Plan(1, 60, 1.0, False), beta=0.01)
  states = cases.drive(attack, logits_fn, x, label, 59)
  looked = np.asarray(states.search.objective)
  assert (np.diff(looked, axis=0) <= 0).all()
  assert (looked[-1] < looked[0]).all()


def test_confidence_is_met_by_the_result():
  logits_fn, x, label = cases.in_the_box()
  attack = elastic_net(plan=PLAN, confidence=0.3)
  record = craft(attack, logits_fn, KEY, x, label)
  assert record.success.all()
  logits = victims.logits(logits_fn, record.x_adv)
  margin = jax.vmap(losses.margin)(jnp.asarray(logits), jnp.asarray(label))
  assert float(margin.min()) >= 0.3 - 1e-5


def test_reaches_a_target():
  logits_fn, x, label = cases.in_the_box()
  target = (label + 1) % 4
  attack = elastic_net(
    plan=PLAN,
    loss_fn=losses.targeted_margin,
    criterion=criteria.classified_as,
  )
  won = {"criterion": criteria.classified_as}
  record = craft(attack, logits_fn, KEY, x, target, **won)
  assert record.success.all()


def test_an_input_that_is_wrong_already_is_its_own_result():
  logits_fn, x, label = cases.in_the_box()
  record = craft(elastic_net(plan=SHORT), logits_fn, KEY, x, (label + 1) % 4)
  np.testing.assert_array_equal(record.x_adv, x)
  np.testing.assert_array_equal(record.steps, 1)


@pytest.mark.parametrize("offset", [100.0, np.nan])
def test_a_failure_keeps_the_clean_input(offset):
  """Trap 22: a failed search returns no black image."""
  logits_fn = victims.linear(np.eye(2), [offset, 0.0])
  x = np.full((2, 2), 0.6, np.float32)
  plan = binary_search.Plan(2, 10)
  states = cases.drive(
    elastic_net(plan=plan), logits_fn, x, np.zeros(2, int), 20
  )
  np.testing.assert_array_equal(states.x_adv[-1], x)
  # Logits that are no numbers are misclassified where they are.
  assert (states.found == np.isnan(offset)).all()
  assert np.isfinite(states.point).all() and states.done[-1].all()


def test_each_best_point_wins_when_asked_again():
  logits_fn, x, label = cases.in_the_box()
  states = cases.drive(elastic_net(plan=PLAN), logits_fn, x, label, 600)
  for i in range(0, 600, 29):
    found = np.asarray(states.found[i])
    asked = victims.logits(logits_fn, states.x_adv[i])
    assert (asked.argmax(axis=1) != label)[found].all()
  assert states.found[-1].any()


@pytest.mark.parametrize(
  ("options", "name"),
  [
    ({"plan": binary_search.Plan(0)}, "num_searches"),
    ({"learning_rate": 0.0}, "learning_rate"),
    ({"beta": -1.0}, "beta"),
    ({"confidence": -1.0}, "confidence"),
    ({"bounds": (1.0, 0.0)}, "bounds"),
  ],
)
def test_refuses_senseless_options(options, name):
  with pytest.raises(ValueError, match=name):
    elastic_net(**options)
