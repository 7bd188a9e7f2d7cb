"""Attacks on one model: judged afresh, resumed, in a folder of their own."""

import contextlib
import json
import shutil

import jax
import numpy as np
import pytest

from experiments import (
  aims,
  assessment,
  attack_table,
  evaluation_report,
  remarks,
  scores,
)
from jaxadv import attacks, balls, engine
from tests.experiments import assessment_cases as cases


def test_minimum_norm_attacks_count_where_they_are_in_the_ball(
  victim, tmp_path
):
  plan = cases.PLAN._replace(attacks=("deepfool",), radii=())
  found = assessment.assess(victim, plan, tmp_path)
  attacked = found.attacked["deepfool"]
  far = attacked.record.distance["linf"] > 0.1 + 1e-6
  assert 0 < (attacked.success & far).sum() < attacked.success.sum()
  np.testing.assert_array_equal(attacked.fooled, attacked.success & ~far)
  assert attacked.num_outside == 0
  numbers = scores.numbers(found, "linf")["attacks"]["deepfool"]
  right = ~found.clean_wrong
  assert numbers["robust_accuracy"] == (right & ~attacked.fooled).mean()
  distance = np.sort(
    np.where(attacked.success, attacked.record.distance["linf"], np.inf)[right]
  )
  median = distance[(len(distance) - 1) // 2]
  assert numbers["distance_quantiles"]["0.5"]["value"] == pytest.approx(median)
  note = scores.table(scores.numbers(found, "linf")).note
  assert "deepfool looks for the nearest" in note
  path = tmp_path / "report.html"
  evaluation_report.write(
    path, "One", {"a": found}, {"a": scores.numbers(found, "linf")}
  )
  assert "Accuracy against the distance" in path.read_text()


def test_a_cascade_is_one_attack(victim, tmp_path, monkeypatch):
  def short(ball, settings):
    del settings
    weak = attacks.pgd(ball, num_steps=1, step_size=1e-3)
    return {"weak": weak, "strong": attacks.fgsm(ball)}

  monkeypatch.setitem(attack_table.CASCADES, "autoattack", short)
  plan = cases.PLAN._replace(attacks=("autoattack",), radii=())
  answers, found = iter((True, True)), None
  while found is None:
    with contextlib.suppress(engine.Interrupted):
      found = assessment.assess(
        victim, plan, tmp_path, stop=lambda: next(answers, False)
      )
  attacked = found.attacked["autoattack"]
  assert list(attacked.stages) == ["clean", "weak", "strong"]
  wrong = cases.predictions(victim, attacked.record.x_adv) != victim.labels
  np.testing.assert_array_equal(attacked.fooled, wrong)
  numbers = scores.numbers(found, "linf")
  stages = numbers["attacks"]["autoattack"]["stages"]
  assert stages["strong"] == numbers["robust_accuracy"] < stages["clean"]
  assert "autoattack on" in scores.table(numbers).note
  json.dumps(numbers, allow_nan=False)


def test_goes_on_with_the_same_records(victim, whole, tmp_path):
  stops, found = 0, None
  while found is None:
    try:
      found = assessment.assess(victim, cases.PLAN, tmp_path, stop=lambda: True)
    except engine.Interrupted:
      stops += 1
  assert stops > 6
  assert cases.records(tmp_path) == cases.records(whole[0])
  numbers = [scores.numbers(each, "linf") for each in (found, whole[1])]
  for each in numbers:
    for attack in each["attacks"].values():
      del attack["seconds"]
  assert numbers[0] == numbers[1]


def test_finished_attacks_are_not_run_again(victim, whole, monkeypatch):
  monkeypatch.setattr(engine, "craft", None)
  found = assessment.assess(victim, cases.PLAN, whole[0])
  np.testing.assert_array_equal(found.curve, whole[1].curve)
  assert (
    found.attacked["targeted_pgd"].seconds
    == whole[1].attacked["targeted_pgd"].seconds
    > 0
  )


def test_a_folder_belongs_to_its_model_data_and_seed(victim, whole):
  other = victim._replace(
    logits_fn=jax.tree.map(lambda leaf: 2 * leaf, victim.logits_fn)
  )
  for model, plan, words in (
    (victim, cases.PLAN._replace(seed=4), "key or seed"),
    (victim._replace(images=victim.images[::-1]), cases.PLAN, "data set"),
    (other, cases.PLAN, "model"),
  ):
    match = f"^--workdir: {whole[0] / 'records'} is of another {words}: choose"
    with pytest.raises(SystemExit, match=match):
      assessment.assess(model, plan, whole[0])


def test_a_changed_attack_runs_anew_and_the_others_do_not(
  victim, whole, tmp_path, monkeypatch, capsys
):
  """By the same name and flags, in the same folder."""
  place = tmp_path / "copy"
  shutil.copytree(whole[0], place)
  entry = attack_table.ATTACKS["targeted_pgd"]
  weak = entry._replace(
    make=lambda ball, s: entry.make(ball, s._replace(num_steps=1))
  )
  monkeypatch.setitem(attack_table.ATTACKS, "targeted_pgd", weak)
  found = assessment.assess(victim, cases.PLAN, place)
  assert found.attacked["targeted_pgd"].record.steps.max() == 1
  before, now = cases.records(whole[0]), cases.records(place)
  assert [name for name in before if before[name] != now[name]] == [
    "targeted_pgd.npz"
  ]
  out = capsys.readouterr().out
  assert "targeted_pgd.npz is of another attack" in out
  assert out.count("anew") == 1


def test_another_aim_or_judge_runs_anew(victim, whole, tmp_path, monkeypatch):
  place = tmp_path / "copy"
  shutil.copytree(whole[0], place)
  table = attack_table.ATTACKS
  aimed = table["targeted_pgd"]._replace(aim=aims.least_likely)
  judged = table["goal_image"]._replace(
    criterion=lambda logits, y: logits.argmax() < 0
  )
  monkeypatch.setitem(table, "targeted_pgd", aimed)
  monkeypatch.setitem(table, "goal_image", judged)
  found = assessment.assess(victim, cases.PLAN, place)
  assert not found.attacked["goal_image"].success.any()
  before, now = cases.records(whole[0]), cases.records(place)
  assert [name for name in before if before[name] != now[name]] == [
    "goal_image.npz",
    "targeted_pgd.npz",
  ]


def test_the_curve_is_aligned_with_who_is_left(victim, whole, tmp_path):
  """The first radius changed: the record of the second is of other rows."""
  place = tmp_path / "copy"
  shutil.copytree(whole[0], place)
  plan = cases.PLAN._replace(radii=(0.08, 0.1, 0.4))
  found = assessment.assess(victim, plan, place)
  alone = assessment.assess(victim, plan, tmp_path / "alone")
  np.testing.assert_array_equal(found.curve, alone.curve)
  assert found.curve[0] < whole[1].curve[0]


def test_an_attack_does_not_depend_on_the_others(victim, whole, tmp_path):
  plan = cases.PLAN._replace(attacks=("targeted_pgd",), radii=())
  assessment.assess(victim, plan, tmp_path)
  assert cases.records(tmp_path) == {
    "targeted_pgd.npz": cases.records(whole[0])["targeted_pgd.npz"]
  }


def test_the_curve_never_rises_and_ends_at_the_bottom(whole):
  curve = whole[1].curve
  assert np.all(np.diff(curve) <= 0)
  assert curve[0] <= 1 - whole[1].clean_wrong.mean()
  assert curve[-1] == 0.0


def test_leaving_the_ball_is_an_error(victim, tmp_path, monkeypatch):
  entry = attack_table.Entry(lambda ball, _: attacks.fgsm(balls.Linf(0.5)))
  monkeypatch.setitem(attack_table.ATTACKS, "fgsm", entry)
  plan = cases.PLAN._replace(attacks=("fgsm",), radii=())
  found = assessment.assess(victim, plan, tmp_path)
  right = ~found.clean_wrong
  assert found.attacked["fgsm"].num_outside == right.sum() > 0
  assert not found.attacked["fgsm"].fooled[right].any()
  numbers = scores.numbers(found, "linf")
  assert numbers["robust_accuracy"] == numbers["clean_accuracy"]
  assert remarks.outside(numbers) == ["fgsm"]
  assert "ERROR: fgsm left the ball" in scores.table(numbers).note
