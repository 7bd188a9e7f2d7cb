"""PDPGD: its proximal steps, its weights and what it refuses.

That it reaches the least perturbation of linear models in Linf is in
`nearest_test`; Adam's last steps leave a few per cent in the other norms.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import balls, engine, norms
from jaxadv.attacks import primal_dual, proximal
from tests import victims
from tests.attacks import minimum_norm_cases as cases


def _pulled_back(norm, radius, delta, scale=1.0, low=-9.0, high=9.0):
  delta = jnp.asarray(delta)
  return primal_dual._pulled_back(
    functools.partial(proximal.OF_NORM[norm], radius=radius),
    delta,
    jnp.full(delta.shape, scale),
    low,
    high,
  )


def test_the_norm_pulls_back_by_its_proximal_map():
  soft = _pulled_back(norms.L1, 0.1, [0.5, -0.2, 0.05, 0.0])
  np.testing.assert_allclose(soft, [0.4, -0.1, 0.0, 0.0], atol=1e-6)
  block = _pulled_back(norms.L2, 1.0, [3.0, 4.0])
  np.testing.assert_allclose(block, [2.4, 3.2], rtol=1e-5)
  capped = _pulled_back(norms.Linf, 0.6, [1.0, -1.0, 0.2])
  np.testing.assert_allclose(capped, [0.7, -0.7, 0.2], rtol=1e-5)


def test_coordinates_of_smaller_scale_are_pulled_farther():
  # The minimiser of `0.1 |z| + scale (z - 0.5)^2 / 2` is 0.5 - 0.1 / scale.
  pulled = _pulled_back(norms.L1, 0.1, [0.5, 0.5], jnp.asarray([1.0, 0.5]))
  np.testing.assert_allclose(pulled, [0.4, 0.3], atol=0.01)


def test_the_weights_follow_the_wins():
  w, b, x, label = cases.problem()
  logits_fn = victims.linear(w, b)
  attack = primal_dual.pdpgd(
    norms.L1, num_steps=11, dual_step_size=0.2, bounds=cases.WIDE
  )
  log_ratio = np.full(len(x), np.log(100.0))
  weight, point = 1 / (1 + np.exp(log_ratio)), x
  for step, state in enumerate(cases.states(attack, logits_fn, x, label)):
    won = np.argmax(point @ w + b, axis=1) != label
    size = 0.2 * (1 - 0.9 * step / 10)
    log_ratio = log_ratio + np.where(won, -size, size)
    weight = 0.9 * weight + 0.1 / (1 + np.exp(log_ratio))
    np.testing.assert_allclose(state.log_ratio, log_ratio, rtol=1e-5)
    np.testing.assert_allclose(state.weight, weight, rtol=1e-4)
    point = np.asarray(state.point)
  assert state.found.any() and not state.found.all()


def test_the_result_is_the_nearest_point_that_won():
  logits_fn, x, label = cases.in_the_box()
  attack = primal_dual.pdpgd(norms.L2, num_steps=60)
  point, least = x, np.full(len(x), np.inf)
  for state in cases.states(attack, logits_fn, x, label):
    won = victims.logits(logits_fn, point).argmax(axis=1) != label
    size = np.linalg.norm(point - x, axis=1)
    least = np.where(won, np.minimum(size, least), least)
    point = np.asarray(state.point)
  assert np.isfinite(least).all()
  found = np.linalg.norm(np.asarray(state.x_adv) - x, axis=1)
  np.testing.assert_allclose(found, least, rtol=1e-5)


@pytest.mark.parametrize(("norm", "order"), [(norms.L1, np.inf), (norms.L2, 2)])
def test_comes_near_the_distance_of_a_linear_model(norm, order):
  w, b, x, label = cases.problem(num_classes=2)
  attack = primal_dual.pdpgd(norm, num_steps=1000, bounds=cases.WIDE)
  logits_fn = victims.linear(w, b)
  x_adv = engine.run(attack, logits_fn, cases.KEY, x, label)
  exact = victims.linear_distance(w, b, x, label, order)
  ratio = np.asarray(jax.vmap(norm)(x_adv - x)) / exact
  np.testing.assert_allclose(ratio, 1.0, atol=0.1)
  assert ratio.min() > 0.999


def test_l0_finds_the_one_coordinate_that_is_enough():
  # Others lead across the boundary, too, but only several together.
  w = np.zeros((6, 2))
  w[:, 1] = 1.0, 1.0, 4.0, 1.0, 0.5, 1.0
  x = np.full((2, 6), 0.5, np.float32)
  logits_fn = victims.linear(w, [0.0, -0.5 * w.sum() - 1.5])
  attack = primal_dual.pdpgd_l0(num_steps=300)
  x_adv = engine.run(attack, logits_fn, cases.KEY, x, np.zeros(2, np.int32))
  assert (victims.logits(logits_fn, x_adv).argmax(axis=1) == 1).all()
  changed = np.asarray(x_adv) != x
  np.testing.assert_array_equal(changed, np.tile(np.arange(6) == 2, (2, 1)))


def test_l0_keeps_the_point_of_fewest_changes():
  logits_fn, x, label = cases.in_the_box()
  attack = primal_dual.pdpgd_l0(num_steps=200)
  point, least = x, np.full(len(x), np.inf)
  for state in cases.states(attack, logits_fn, x, label):
    won = victims.logits(logits_fn, point).argmax(axis=1) != label
    least = np.where(won, np.minimum((point != x).sum(axis=1), least), least)
    point = np.asarray(state.point)
  assert np.isfinite(least).all() and least.max() < 10
  np.testing.assert_array_equal(state.distance, least)
  np.testing.assert_array_equal(
    (np.asarray(state.x_adv) != x).sum(axis=1), least
  )


def test_refuses_a_norm_without_a_known_proximal_map():
  other = norms.Norm(balls.L2, norms.L2.dual, norms.L2.to_hyperplane)
  assert primal_dual.pdpgd(other).num_steps == 500  # Equal to `norms.L2`.
  odd = norms.Norm(balls.L1, norms.L2.dual, norms.L2.to_hyperplane)
  with pytest.raises(ValueError, match="proximal map is not known"):
    primal_dual.pdpgd(odd)


@pytest.mark.parametrize(
  "option", ["step_size", "dual_step_size", "first_ratio"]
)
def test_refuses_numbers_that_are_not_positive(option):
  for make in (
    functools.partial(primal_dual.pdpgd, norms.L1),
    primal_dual.pdpgd_l0,
  ):
    with pytest.raises(ValueError, match=option):
      make(**{option: 0.0})
