"""The L-BFGS attack against closed forms, its line search and the traps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import criteria, engine, losses
from jaxadv.attacks import binary_search
from jaxadv.attacks.lbfgs import lbfgs
from tests import victims
from tests.attacks import minimum_norm_cases as cases

KEY = cases.KEY
WIDE = (-5.0, 5.0)
PLAN = binary_search.Plan(15, 60, 1e-2, abort_early=False)
craft = functools.partial(
  engine.craft, progress=False, criterion=criteria.classified_as
)


def problem(num_classes=2):
  rng = np.random.default_rng(0)
  w = rng.normal(size=(12, num_classes))
  b = -0.5 * w.sum(axis=0)
  x = rng.uniform(0.1, 0.9, size=(6, 12)).astype(np.float32)
  return w, b, x, np.argmax(x @ w + b, axis=1).astype(np.int32)


def test_finds_the_distance_of_a_linear_model():
  w, b, x, label = problem()
  record = craft(
    lbfgs(plan=PLAN, bounds=WIDE),
    victims.linear(w, b),
    KEY,
    x,
    1 - label,
  )
  assert record.success.all()
  exact = victims.linear_distance(w, b, x, label, 2)
  np.testing.assert_allclose(record.distance["l2"], exact, rtol=0.01)
  assert (record.distance["l2"] >= exact * 0.9999).all()
  # A search of one curved valley takes a few steps, not all it may.
  assert (record.steps < 15 * 15).all()


def test_finds_the_distance_where_the_bounds_are_in_the_way():
  """The first coordinate counts most, but has no room: the others pay."""
  w, gap = np.asarray([3.0, 1.0, 1.0]), 0.6
  x = np.asarray([[0.9, 0.5, 0.5]], np.float32)
  logits_fn = victims.binary(w, -gap - x[0] @ w)
  record = craft(lbfgs(plan=PLAN), logits_fn, KEY, x, np.ones(1, int))
  # 0.1 of the first coordinate gives 0.3; 0.15 of each other gives the rest.
  exact = np.sqrt(0.1**2 + 2 * 0.15**2)
  assert record.success[0] and record.x_adv[0, 0] == 1.0
  np.testing.assert_allclose(record.distance["l2"], exact, rtol=0.01)


def test_a_search_ends_in_the_minimum():
  """With a fixed c the end is that of many steps of plain descent."""
  w, b, x, label = problem(num_classes=3)
  target, c = (label + 1) % 3, 2.0
  attack = lbfgs(plan=binary_search.Plan(1, 60, c, abort_early=False))
  states = cases.drive(attack, victims.linear(w, b), x, target, 60)

  def objective(point, clean, target):
    logits = point @ jnp.asarray(w, jnp.float32) + jnp.asarray(b, jnp.float32)
    fit = losses.targeted_cross_entropy(logits, target)
    return jnp.sum(jnp.square(point - clean)) - c * fit

  def descend(point, _):
    grad = jax.vmap(jax.grad(objective))(point, x, target)
    return jnp.clip(point - 0.02 * grad, 0.0, 1.0), None

  slow = jax.lax.scan(descend, jnp.asarray(x), None, 3000)[0]
  done = np.argmax(states.done, axis=0)
  value = np.asarray(states.value)[done, np.arange(6)]
  np.testing.assert_allclose(
    value, jax.vmap(objective)(slow, x, target), rtol=1e-4
  )
  assert states.done[-1].all()


def test_directions_fall_and_leave_held_coordinates_alone():
  w, b, x, label = problem(num_classes=3)
  x = np.clip(3 * x - 1, 0, 1)
  attack = lbfgs(plan=binary_search.Plan(1, 40, 20.0, abort_early=False))
  states = cases.drive(attack, victims.linear(w, b), x, (label + 1) % 3, 40)
  running = ~np.asarray(states.done)
  base, grad = np.asarray(states.base), np.asarray(states.grad)
  held = ((base == 0) & (grad > 0)) | ((base == 1) & (grad < 0))
  direction = np.asarray(states.direction)
  assert held[5:][running[5:]].any()
  np.testing.assert_array_equal(direction[held], 0.0)
  assert (np.sum(direction * grad, axis=-1)[running] < 0).all()


def test_a_step_that_does_not_fall_is_halved():
  w, b, x, label = problem(num_classes=3)
  attack = lbfgs(plan=binary_search.Plan(1, 40, 50.0, abort_early=False))
  states = cases.drive(attack, victims.linear(w, b), x, (label + 1) % 3, 40)
  value, length = np.asarray(states.value), np.asarray(states.length)
  running = ~np.asarray(states.done)[:-1]
  # Values never rise; a length other than 1 is half the one before.
  assert (value[1:] <= value[:-1])[running].all()
  halved = running & (length[1:] < 1)
  assert halved.any()
  np.testing.assert_array_equal(length[1:][halved], length[:-1][halved] / 2)
  base = np.asarray(states.base)
  np.testing.assert_array_equal(base[1:][halved], base[:-1][halved])


def test_a_search_wins_by_where_it_ends():
  """A step that overshoots into the target does not lower c."""
  lead = victims.binary(np.asarray([4.0, 0.0]), -3.0)
  x = np.asarray([[0.5, 0.5]], np.float32)
  # The first step wins at 1.0, but is too long; the next one wins at 0.8; the
  # minimum of d^2 + 0.2 log(1 + exp(1 - 4 d)) is at d = 0.21, where it loses.
  attack = lbfgs(plan=binary_search.Plan(2, 30, 0.2, abort_early=False))
  states = cases.drive(attack, lead, x, np.ones(1, int), 30)
  last = int(np.argmax(np.asarray(states.search.number)[:, 0] == 1))
  assert states.found[last, 0]
  assert not states.search.upper[last, 0] < 1e9
  assert states.search.c[last, 0] == pytest.approx(2.0)


def test_untargeted_with_the_losses_for_it():
  w, b, x, label = problem(num_classes=3)
  attack = lbfgs(
    plan=PLAN, loss_fn=losses.cross_entropy, criterion=criteria.misclassified
  )
  record = engine.craft(
    attack, victims.linear(w, b), KEY, x, label, progress=False
  )
  assert record.success.all()


def test_an_input_that_is_the_target_already_is_its_own_result():
  w, b, x, label = problem()
  record = craft(lbfgs(plan=PLAN), victims.linear(w, b), KEY, x, label)
  np.testing.assert_array_equal(record.x_adv, x)
  np.testing.assert_array_equal(record.steps, 1)


@pytest.mark.parametrize("offset", [1000.0, np.nan])
def test_a_failure_keeps_the_clean_input(offset):
  logits_fn = victims.linear(np.eye(2), [offset, 0.0])
  x = np.full((2, 2), 0.6, np.float32)
  attack = lbfgs(plan=binary_search.Plan(2, 10, abort_early=False))
  states = cases.drive(attack, logits_fn, x, np.ones(2, int), 20)
  np.testing.assert_array_equal(states.x_adv[-1], x)
  assert not states.found.any()
  assert np.isfinite(states.point).all() and states.done[-1].all()


@pytest.mark.parametrize(
  ("options", "name"),
  [
    ({"plan": binary_search.Plan(0)}, "num_searches"),
    ({"plan": binary_search.Plan(initial_c=0.0)}, "initial_c"),
    ({"bounds": (1.0, 0.0)}, "bounds"),
  ],
)
def test_refuses_senseless_options(options, name):
  with pytest.raises(ValueError, match=name):
    lbfgs(**options)
