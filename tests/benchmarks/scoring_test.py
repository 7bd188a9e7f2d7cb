"""The score of AttackBench, on distances that can be counted by hand."""

import numpy as np
import pytest

from benchmarks import scoring

_INF = np.inf


def test_envelope_scores_one_and_nothing_scores_zero():
  best = np.array([0.0, 1.0, 2.0, 4.0])
  assert scoring.local_optimality(best, best) == 1.0
  nothing = np.array([0.0, _INF, _INF, _INF])
  assert scoring.local_optimality(nothing, best) == pytest.approx(0.0)


def test_score_is_a_share_of_the_area_between():
  # Areas: 1.75 of the envelope, 3 without any attack, 2 of this one.
  best = np.array([0.0, 1.0, 2.0, 4.0])
  attack = np.array([0.0, 1.0, 3.0, 9.0])
  assert scoring.local_optimality(attack, best) == pytest.approx(0.8)


def test_examples_that_nobody_broke_tell_nothing():
  best = np.array([1.0, 2.0, _INF])
  assert scoring.local_optimality(best, best) == 1.0
  worse = np.array([2.0, 2.0, _INF])
  assert scoring.local_optimality(worse, best) == pytest.approx(0.0)


def test_no_room_is_no_score():
  zero = np.zeros(3)
  assert np.isnan(scoring.local_optimality(zero, zero))


def test_envelope_median_and_success_rate():
  attacks = np.array([[0.0, 3.0, _INF, 1.0], [0.0, 2.0, 5.0, _INF]])
  best = scoring.envelope(attacks)
  np.testing.assert_array_equal(best, [0.0, 2.0, 5.0, 1.0])
  assert scoring.median(attacks[0], best) == 3.0
  assert scoring.success_rate(attacks[0], best) == pytest.approx(2 / 3)
