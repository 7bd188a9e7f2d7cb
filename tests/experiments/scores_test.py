"""Numbers, tables and the page, of results written by hand."""

import json

import numpy as np
import pytest

from experiments import assessment, evaluation_report, scores
from jaxadv import engine
from tests.experiments import assessment_cases as cases


def _attacked(fooled, success, steps):
  n = len(fooled)
  distance = dict.fromkeys(("linf", "l2", "l1", "l0"), np.arange(n) / 10)
  record = engine.Record(
    x_adv=np.zeros((n, 8, 8, 1), np.float32),
    success=np.array(success, bool),
    inside=np.ones(n, bool),
    bounded=np.asarray(True),
    distance=distance,
    steps=np.array(steps),
    forwards=np.array(steps),
    backwards=np.array(steps),
    index=np.arange(n),
  )
  return assessment.Attacked(
    record, np.array(fooled, bool), np.array(success, bool), 0, 1.5
  )


@pytest.fixture
def by_hand(victim):
  """Five examples; the first is wrong from the start."""
  return assessment.Outcome(
    victim=victim,
    plan=cases.PLAN._replace(radii=(0.1,)),
    clean_logits=np.zeros((5, 10)),
    clean_wrong=np.array([1, 0, 0, 0, 0], bool),
    attacked={
      "fgsm": _attacked([1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [1] * 5),
      "targeted_pgd": _attacked(
        [0, 0, 1, 1, 0], [1, 0, 1, 0, 0], [9, 8, 2, 8, 8]
      ),
      "goal_image": _attacked([1] * 5, [1] * 5, [300] * 5),
    },
    curve=np.array([0.4]),
  )


def test_numbers_by_hand(by_hand):
  numbers = scores.numbers(by_hand, "linf")
  assert numbers["num_examples"] == 5
  assert numbers["clean_accuracy"] == pytest.approx(0.8)
  assert numbers["robust_accuracy"] == pytest.approx(0.2)
  assert numbers["success_rate"] == pytest.approx(0.75)
  fgsm, targeted, goal = numbers["attacks"].values()
  assert fgsm["robust_accuracy"] == pytest.approx(0.4)
  assert fgsm["marginal_drop"] == pytest.approx(0.2)
  assert fgsm["median_distance"]["linf"] == pytest.approx(0.15)
  assert targeted["robust_accuracy"] == pytest.approx(0.4)
  assert targeted["success_rate"] == 0.25
  assert targeted["fooled_rate"] == 0.5
  assert targeted["mean_steps"] == 6.5
  assert targeted["backwards"] == 35
  assert goal["success_rate"] == 1.0
  assert goal["robust_accuracy"] is None and goal["marginal_drop"] is None
  assert numbers["curve"]["accuracy"] == [0.4]
  json.dumps(numbers, allow_nan=False)


def test_nothing_to_break_and_nothing_bounded(by_hand):
  outcome = by_hand._replace(
    clean_wrong=np.ones(5, bool),
    attacked={"goal_image": by_hand.attacked["goal_image"]},
  )
  numbers = scores.numbers(outcome, "linf")
  assert numbers["robust_accuracy"] is None
  assert numbers["attacks"]["goal_image"]["success_rate"] is None
  json.dumps(numbers, allow_nan=False)
  assert "its median linf distance is none" in scores.table(numbers).note


def test_wilson_interval():
  """The score interval, worked out: z^2 / (n + z^2) at no success."""
  assert scores.interval(0.0, 10) == pytest.approx([0.0, 0.27753], abs=1e-5)
  assert scores.interval(0.5, 100) == pytest.approx(
    [0.40383, 0.59617], abs=1e-5
  )


def test_models_side_by_side(by_hand, tmp_path):
  numbers = scores.numbers(by_hand, "linf")
  table = scores.comparison({"a": numbers, "b": numbers})
  assert table.columns == [
    *("attack", "a accuracy", "b accuracy", "a success", "b success")
  ]
  assert table.rows[0][:3] == ["none", "80.0 %", "80.0 %"]
  assert table.rows[-1] == ["worst case", *["20.0 %"] * 2, *["75.0 %"] * 2]
  assert "0.25 (a), 0.25 (b)" in table.note


def test_report(whole, tmp_path):
  outcome = whole[1]
  numbers = scores.numbers(outcome, "linf")
  path = tmp_path / "report.html"
  evaluation_report.write(
    path, "Two", {"a": outcome, "b": outcome}, {"a": numbers, "b": numbers}
  )
  text = path.read_text()
  for title in ("Accuracy under attack", "against the radius", "Examples: b"):
    assert title in text
  grids = sum(
    bool((~outcome.clean_wrong & each.success).any())
    for each in outcome.attacked.values()
  )
  assert text.count("<svg") == 1 + 2 + 2 + 2 * grids
