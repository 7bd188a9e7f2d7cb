"""What results are worth: the worst case per example, both rates by hand."""

import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import attacks, balls, criteria, engine, evaluation
from tests import victims

_KEY = jax.random.key(0)
_X = np.random.default_rng(0).uniform(size=(12, 5, 5, 1)).astype(np.float32)


def _victim():
  return victims.ordinary(25, 4)


def _labels():
  """Right for the first nine inputs, wrong for the last three."""
  best = victims.logits(_victim(), _X).argmax(axis=1)
  return np.where(np.arange(12) < 9, best, (best + 1) % 4).astype(np.int32)


def test_fooled_and_accuracy():
  wrong = evaluation.fooled(_victim(), _KEY, _X, _labels(), batch_size=5)
  np.testing.assert_array_equal(wrong, np.arange(12) >= 9)
  assert evaluation.accuracy(
    _victim(), _KEY, _X, _labels(), batch_size=5
  ) == pytest.approx(0.75)


_CLEAN_WRONG = np.array([1, 0, 0, 0, 0], bool)
_FIRST = np.array([0, 1, 1, 0, 0], bool)
_SECOND = np.array([1, 0, 1, 1, 0], bool)


def test_summary_takes_the_worst_case_per_example():
  summary = evaluation.summary(_CLEAN_WRONG, [_FIRST, _SECOND])
  assert summary == evaluation.Summary(
    clean_accuracy=pytest.approx(0.8),
    robust_accuracy=pytest.approx(0.2),
    success_rate=pytest.approx(0.75),
    num_examples=5,
  )
  # An example that was wrong is not robust, though no attack fools it.
  alone = evaluation.summary(_CLEAN_WRONG, [_FIRST])
  assert alone.robust_accuracy == pytest.approx(0.4)
  assert alone.success_rate == pytest.approx(0.5)


def test_summary_without_attacks_or_without_right_examples():
  assert evaluation.summary(_CLEAN_WRONG, []).robust_accuracy == 0.8
  hopeless = evaluation.summary(np.ones(3, bool), [])
  assert hopeless.robust_accuracy == 0 and np.isnan(hopeless.success_rate)


def test_marginal_drops():
  drops = evaluation.marginal_drops(
    _CLEAN_WRONG, {"first": _FIRST, "second": _SECOND}
  )
  assert drops == {"first": pytest.approx(0.2), "second": pytest.approx(0.2)}


def test_inside_refuses_what_left_the_ball_or_the_bounds():
  x = np.full((6, 4), 0.5, np.float32)
  x[5] = 1.0
  x_adv = x.copy()
  x_adv[1, 0] += 0.1
  x_adv[2, 0] += 0.1 + 5e-6
  x_adv[3, 0] = np.nan
  x_adv[4, 0] += 0.1 + 5e-7  # Rounding is allowed.
  x_adv[5, 0] = 1.0 + 1e-6  # In the bounds it is not.
  found = evaluation.inside(balls.Linf(0.1), x, x_adv)
  np.testing.assert_array_equal(found, [1, 1, 0, 0, 1, 0])
  wide = evaluation.inside(balls.Linf(0.1), x, x_adv, bounds=(-1.0, 2.0))
  np.testing.assert_array_equal(wide, [1, 1, 0, 0, 1, 1])
  l1 = evaluation.inside(balls.L1(0.1), x, x + 0.02)
  np.testing.assert_array_equal(l1, [1, 1, 1, 1, 1, 0])


def _four_steps(ball):
  return attacks.basic_iterative(ball, num_steps=4, step_size=ball.eps / 4)


def _linf(*radii):
  return [balls.Linf(eps) for eps in radii]


def test_robustness_curve_is_that_of_the_closed_form():
  """Two classes: an example breaks where eps ||w||_1 exceeds its margin."""
  rng = np.random.default_rng(1)
  w = rng.normal(size=25)
  x = rng.uniform(0.3, 0.7, size=(30, 5, 5, 1)).astype(np.float32)
  b = -float(w.sum() / 2)
  victim = victims.binary(w, b)
  labels = (x.reshape(30, 25) @ w + b > 0).astype(np.int32)
  distance = abs(x.reshape(30, 25) @ w + b) / abs(w).sum()
  radii = [0.0, 0.02, 0.05, 0.1, 0.15]
  before = victims.CALLS["affine"]
  curve = evaluation.robustness_curve(
    _four_steps, _linf(*radii), victim, _KEY, x, labels, slots=8, progress=False
  )
  # Four steps of eps / 4 reach the corner; the last is not asked about.
  expected = [(distance > eps).mean() for eps in radii]
  np.testing.assert_allclose(curve, expected)
  assert 0 < curve[2] < curve[1] < curve[0] == 1
  first = victims.CALLS["affine"] - before
  evaluation.robustness_curve(
    _four_steps, _linf(0.03, 0.04), victim, _KEY, x, labels, slots=8
  )
  # Shapes are checked by tracing; nothing is compiled anew.
  assert victims.CALLS["affine"] - before - first <= 2


def test_what_left_its_ball_breaks_nothing():
  # 0.01 away from the other class, and attacked in balls of three times eps.
  victim, x = victims.binary(np.ones(25), -12.5), np.full((2, 5, 5, 1), 0.49)

  def far(ball):
    attack = _four_steps(balls.Linf(3 * ball.eps))
    return attack._replace(threat=attack.threat._replace(ball=None))

  curve = evaluation.robustness_curve(
    far,
    _linf(0.005, 0.02),
    victim,
    _KEY,
    x.astype(np.float32),
    np.zeros(2, np.int32),
    progress=False,
  )
  np.testing.assert_array_equal(curve, [1.0, 0.0])


def test_robustness_curve_refuses_an_attack_in_another_ball():
  victim, x = victims.binary(np.ones(25), -12.5), np.full((2, 5, 5, 1), 0.49)
  with pytest.raises(ValueError, match="contradicts that of the attack"):
    evaluation.robustness_curve(
      lambda ball: _four_steps(balls.Linf(3 * ball.eps)),
      _linf(0.005),
      victim,
      _KEY,
      x.astype(np.float32),
      np.zeros(2, np.int32),
    )


def test_robustness_curve_refuses_radii_that_fall_or_are_no_balls():
  with pytest.raises(TypeError, match="ball must be"):
    evaluation.robustness_curve(
      _four_steps, [0.1, 0.2], _victim(), _KEY, _X, _labels()
    )
  with pytest.raises(ValueError, match="radii of threats must increase"):
    evaluation.robustness_curve(
      _four_steps, _linf(0.2, 0.1), _victim(), _KEY, _X, _labels()
    )


def test_success_against_steps():
  steps = np.array([1, 1, 3, 4, 4], np.int32)
  record = engine.Record(
    x_adv=_X[:5],
    success=np.array([1, 1, 1, 0, 1], bool),
    inside=np.ones(5, bool),
    bounded=np.asarray(True),
    distance={},
    steps=steps,
    forwards=steps,
    backwards=steps,
    index=np.arange(5),
  )
  np.testing.assert_allclose(
    evaluation.success_against_steps(record, 4), [0, 0.4, 0.4, 0.6, 0.8]
  )


def test_confidence_on_mistakes():
  logits = victims.logits(_victim(), _X)
  best = np.asarray(jax.nn.softmax(jnp.asarray(logits))).max(axis=1)
  found = evaluation.confidence_on_mistakes(
    _victim(), _KEY, _X, _labels(), batch_size=5
  )
  np.testing.assert_allclose(found, best[9:], rtol=1e-5)


def test_minimum_distances_leave_nothing_out():
  wrong = np.array([True, False, False, False])
  success = np.array([True, True, False, True])
  found = evaluation.minimum_distances(
    wrong, success, np.array([0.7, 2.0, 0.0, 1.0])
  )
  np.testing.assert_array_equal(found, [0.0, 2.0, np.inf, 1.0])
  np.testing.assert_allclose(
    evaluation.accuracy_at(found, [0.0, 0.99, 1.0, 2.0, 100.0]),
    [0.75, 0.75, 0.5, 0.25, 0.25],
  )


def test_the_median_and_its_interval():
  distances = np.arange(1.0, 102.0)
  median = evaluation.distance_quantile(distances)
  assert median.value == 51.0
  # The order statistics of a binomial(101, 1/2) at 2.5 and 97.5 %: 41 and 61.
  assert abs(median.low - 41) <= 2 and abs(median.high - 61) <= 2
  assert evaluation.distance_quantile(distances, 0.25).value == 26.0
  assert evaluation.distance_quantile(distances) == median


def test_a_bootstrap_in_parts_is_the_one_at_once(monkeypatch):
  distances = np.random.default_rng(0).uniform(size=103)
  whole = evaluation.distance_quantile(distances, num_resamples=50, seed=3)
  monkeypatch.setattr(evaluation, "_RESAMPLED", 7 * 103)
  parts = evaluation.distance_quantile(distances, num_resamples=50, seed=3)
  assert parts == whole


def test_a_bootstrap_of_many_distances_takes_little_memory():
  distances = np.random.default_rng(0).uniform(size=20_000)
  tracemalloc.start()
  evaluation.distance_quantile(distances, num_resamples=300)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 60e6


def test_failed_searches_are_infinitely_far():
  distances = np.array([1.0, 2.0, np.inf, np.inf, np.inf])
  assert evaluation.distance_quantile(distances).value == np.inf
  assert evaluation.distance_quantile(distances, 0.4).value == 2.0


@pytest.mark.parametrize(("distances", "share"), [([], 0.5), ([1.0], 1.0)])
def test_quantiles_of_nothing_and_beyond_are_refused(distances, share):
  with pytest.raises(ValueError, match="share"):
    evaluation.distance_quantile(np.asarray(distances), share)


def test_robustness_curve_refuses_attacks_with_another_aim():
  victim, x = victims.binary(np.ones(25), -12.5), np.full((2, 5, 5, 1), 0.49)

  def sure(ball):
    return attacks.fgsm(ball, criterion=criteria.misclassified_with(0.5))

  with pytest.raises(ValueError, match="contradicts that of the attack"):
    evaluation.robustness_curve(
      sure,
      _linf(0.005),
      victim,
      _KEY,
      x.astype(np.float32),
      np.zeros(2, np.int32),
    )


def test_a_radius_is_the_same_in_every_type():
  attack = attacks.fgsm(balls.Linf(0.05))
  for eps in (np.float32(0.05), np.float64(0.05), jnp.float32(0.05)):
    attacks.within(attack, balls.Linf(eps))
