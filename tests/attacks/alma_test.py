"""ALMA against closed forms and the paper's penalty."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import engine, losses, models, norms
from jaxadv.attacks.alma import _slope, alma
from tests import victims
from tests.attacks import minimum_norm_cases as cases

KEY, WIDE = cases.KEY, cases.WIDE


def test_finds_the_distance_of_a_linear_model():
  w, b, x, label = cases.problem(num_classes=2)
  attack = alma(norms.L2, num_steps=1000, bounds=WIDE)
  x_adv = engine.run(attack, victims.linear(w, b), KEY, x, label)
  exact = victims.linear_distance(w, b, x, label, 2)
  found = np.linalg.norm(np.asarray(x_adv) - x, axis=1)
  np.testing.assert_allclose(found, exact, rtol=0.01)


def test_the_slope_is_that_of_the_penalty():
  def penalty(d, rho, mu):
    rising = mu * d + mu * rho * d**2 + rho**2 * d**3 / 6
    return jnp.where(d >= 0, rising, mu * d / (1 - rho * jnp.minimum(d, 0)))

  for d in (-2.0, -0.1, 0.3, 2.0):
    for rho, mu in ((1.0, 1.0), (3.0, 0.2)):
      slope = _slope(jnp.float32(d), jnp.float32(rho), jnp.float32(mu))
      assert float(slope) == pytest.approx(
        float(jax.grad(penalty)(d, rho, mu)), rel=1e-5
      )


def _plateau(boundary, x):
  """Class 1 wins beyond the boundary; 0.5 before it the slope ends."""
  lead = jnp.maximum(x[:, 0] - boundary, -0.5)
  return jnp.stack([jnp.zeros_like(lead), lead], axis=1)


def test_penalty_parameters_are_each_row_s_own():
  # The first row wins at once, the second never: only its rho grows, by the
  # looks in the 10th, 20th and 30th step.
  logits_fn = models.bind(_plateau, jnp.float32(0.9))
  x = jnp.asarray([[0.895, 0.0], [0.0, 0.0]])
  attack = alma(norms.L2, num_steps=30, step_size=0.01, loss_fn=losses.margin)
  *_, state = cases.states(attack, logits_fn, x, jnp.zeros(2, int))
  np.testing.assert_array_equal(state.found, [True, False])
  np.testing.assert_allclose(state.rho, [1.0, 1.2**3], rtol=1e-5)


def _first_step(norm, distance, bounds):
  """The inputs, the slope of the penalty, the state after the first step."""
  w, b, x, label = cases.problem(num_classes=2)
  attack = alma(
    norm, first_distance=distance, loss_fn=losses.margin, bounds=bounds
  )
  logits_fn = victims.linear(w, b)
  lead = victims.logits(logits_fn, x)
  rows = np.arange(len(x))
  constraint = lead[rows, label] - lead[rows, 1 - label]
  rising = 1 + 2 * constraint + constraint**2 / 2
  slope = rising[:, None] * (w[:, label] - w[:, 1 - label]).T
  return x, slope, next(cases.states(attack, logits_fn, x, label))


@pytest.mark.parametrize(("norm", "order"), [(norms.L2, 2), (norms.L1, 1)])
@pytest.mark.parametrize("bounds", [(-9.0, 9.0), (-2.4, 2.4)])
def test_the_first_step_has_the_distance_asked_for(norm, order, bounds):
  x, slope, state = _first_step(norm, 1.5, bounds)
  size = np.asarray(state.step_size)[:, None]
  moved = np.clip(x - size * slope, *bounds) - x
  np.testing.assert_allclose(
    np.linalg.norm(moved, order, axis=1), 1.5, rtol=1e-4
  )
  # But for the divisor of the first step, the root of the mean of squares.
  divided = slope / np.sqrt(0.9 + 0.1 * slope**2)
  point = np.clip(x - size * divided, *bounds)
  np.testing.assert_allclose(state.point, point, atol=1e-5)


def test_a_first_distance_beyond_the_box_goes_half_the_way():
  x, slope, state = _first_step(norms.L2, 1e3, (-4.0, 4.0))
  reach = np.linalg.norm(np.where(slope > 0, x + 4, 4 - x), axis=1)
  size = np.asarray(state.step_size)[:, None]
  moved = np.linalg.norm(np.clip(x - size * slope, -4, 4) - x, axis=1)
  np.testing.assert_allclose(moved, reach / 2, rtol=1e-4)


def test_a_flat_start_is_left_in_a_random_direction():
  logits_fn = victims.linear(np.zeros((6, 3)), [1.0, 0.0, 0.0])
  x = jnp.full((2, 6), 0.5)
  attack = alma(norms.L2, first_distance=0.2)
  state = next(cases.states(attack, logits_fn, x, jnp.zeros(2, int)))
  moved = np.asarray(state.point) - 0.5
  np.testing.assert_allclose(
    np.linalg.norm(moved, axis=1), 0.2 / np.sqrt(0.9), rtol=0.06
  )
  assert np.abs(moved[0] - moved[1]).max() > 0.05


def test_a_row_without_room_keeps_its_step_size():
  # All slopes lead out of the box.
  weights = np.stack([-np.ones(6), np.zeros(6)], axis=1)
  logits_fn = victims.linear(weights, [10.0, 0.0])
  attack = alma(norms.L2, first_distance=0.2, loss_fn=losses.margin)
  x = jnp.ones((1, 6))
  state = next(cases.states(attack, logits_fn, x, jnp.zeros(1, int)))
  np.testing.assert_allclose(state.step_size, 0.1)
  np.testing.assert_array_equal(state.point, x)


@pytest.mark.parametrize("broken", [0.0, np.nan])
def test_a_failure_keeps_the_clean_input(broken):
  logits_fn = victims.linear(np.zeros((6, 3)), [1.0 + broken, 0.0, 0.0])
  x = jnp.full((2, 6), 0.5)
  attack = alma(norms.L2, num_steps=3)
  for state in cases.states(attack, logits_fn, x, jnp.zeros(2, int)):
    assert np.isfinite(state.point).all()
  np.testing.assert_array_equal(state.x_adv, x)
  # Logits that are no numbers are misclassified where they are.
  assert (state.found == np.isnan(broken)).all()


def test_an_input_that_is_wrong_already_is_its_own_result():
  w, b, x, label = cases.problem()
  attack = alma(norms.L1, bounds=WIDE)
  state = next(cases.states(attack, victims.linear(w, b), x, (label + 1) % 3))
  assert state.found.all() and state.done.all()
  np.testing.assert_array_equal(state.x_adv, x)


@pytest.mark.parametrize(
  "options",
  [
    {"num_steps": 0},
    {"step_size": 0.0},
    {"last_share": 0.0},
    {"first_distance": 0.0},
    {"bounds": (1.0, 0.0)},
  ],
)
def test_refuses_senseless_options(options):
  with pytest.raises(ValueError, match=next(iter(options))):
    alma(norms.L2, **options)
