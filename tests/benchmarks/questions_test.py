"""What the recorder hears, and the search for the least radius."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import questions, radius_search
from jaxadv import attacks, balls, models, norms

_WEIGHTS = np.array([[1.0, -1.0, 0.5, 2.0], [0.0, 0.0, 0.0, 0.0]], np.float32)


def _apply(variables, x):
  return x @ variables.T - jnp.array([[1.0, 0.0]])


_LOGITS_FN = models.bind(_apply, jnp.asarray(_WEIGHTS))
_X = np.array([[0.6, 0.4, 0.5, 0.6], [0.9, 0.2, 0.5, 0.5], [0, 0, 0, 0]])
_X = _X.astype(np.float32)
_LABEL = np.array([0, 0, 0])
_GAP = np.array([0.65, 0.95])  # The third is wrong from the start.


def _found(attack, norm, budget=2000):
  key = jax.random.key(0)
  return questions.best_found(
    attack, _LOGITS_FN, key, _X, _LABEL, norm=norm, budget=budget
  )


def test_nearest_question_counts_and_clean_errors_are_zero():
  found = _found(attacks.ddn(num_steps=300), "l2")
  distance = _GAP / np.linalg.norm(_WEIGHTS[0])
  np.testing.assert_allclose(found.distance[:2], distance, rtol=0.02)
  assert found.distance[2] == 0.0
  np.testing.assert_array_equal(found.passes, [600, 600, 2])


def test_budget_counts_forward_and_backward_passes():
  found = _found(attacks.ddn(num_steps=300), "l2", budget=21)
  np.testing.assert_array_equal(found.passes, [20, 20, 2])


def test_a_result_that_nobody_asked_about_does_not_count():
  attack = attacks.pgd(
    balls.Linf(0.9), num_steps=1, step_size=0.9, start=attacks.at_input
  )
  assert np.isinf(_found(attack, "linf").distance[:2]).all()


def test_jacobians_cost_a_backward_pass_per_class():
  found = _found(attacks.deepfool(norms.L2, num_candidates=2), "l2")
  assert found.passes[2] == 3
  distance = _GAP / np.linalg.norm(_WEIGHTS[0])
  np.testing.assert_allclose(found.distance[:2], 1.02 * distance, rtol=0.01)


def _auto_pgd(eps):
  return attacks.auto_pgd(balls.Linf(eps), num_steps=10)


def test_least_radius_finds_the_boundary():
  attack = radius_search.least_radius(
    _auto_pgd, norms.Linf, first=1 / 255, largest=1.0, num_steps=300
  )
  found = _found(attack, "linf")
  distance = _GAP / np.abs(_WEIGHTS[0]).sum()
  np.testing.assert_allclose(found.distance[:2], distance, rtol=0.02)
  assert found.distance[2] <= 1 / 255
  assert found.passes.max() <= 600


@pytest.mark.parametrize("norm", questions.DISTANCES)
def test_distances(norm):
  delta = np.array([[3.0, -4.0, 0.0]])
  expected = {"linf": 4.0, "l2": 5.0, "l1": 7.0, "l0": 2.0}[norm]
  assert questions.DISTANCES[norm](delta) == [expected]
