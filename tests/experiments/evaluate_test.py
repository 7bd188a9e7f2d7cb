"""The assessment in this process; the script in others: flags are global."""

import contextlib
import json
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import optax
import pytest

from experiments import (
  assessment,
  attack_table,
  common,
  evaluation_report,
  fitting,
  networks,
  remarks,
  scores,
  victims,
)
from jaxadv import attacks, balls, data, engine, train_state
from jaxadv.defences import training

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_PLAN = assessment.Plan(
  attacks=("fgsm", "targeted_pgd", "goal_image"),
  ball=balls.Linf,
  eps=0.1,
  radii=(0.05, 0.1, 0.4),
  settings=attack_table.Settings(
    num_steps=20, step_size=None, num_restarts=2, num_classes=10
  ),
  seed=3,
  slots=8,
)


def _step_fn(module):
  return lambda state, batch: training.train_step(
    state,
    batch,
    train_apply=train_state.train_apply(module),
    robust_loss=training.standard,
  )


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
  """A network after 30 steps: mostly right, and not robust."""
  place = tmp_path_factory.mktemp("model")
  module = networks.build_model("seed_network", "digits", 10)
  examples = data.load("digits").train
  state = train_state.create(
    module,
    optax.adam(0.05),
    jax.random.key(0),
    data.batch(examples, [0])["image"],
  )
  fitting.fit(
    place,
    state,
    _step_fn(module),
    lambda variables: {"score": 0.0},
    data.first(examples, 960),
    fitting.Schedule(num_epochs=2, batch_size=64, seed=0),
  )
  info = {"dataset": "digits", "model": "seed_network"}
  info |= {"num_classes": 10, "image_shape": [8, 8, 1]}
  common.write_json(place / "model.json", info)
  return place


@pytest.fixture(scope="module")
def victim(model_dir):
  return victims.load(model_dir, num_examples=20)


@pytest.fixture(scope="module")
def whole(victim, tmp_path_factory):
  """Where an assessment ran without a stop, and what it found."""
  place = tmp_path_factory.mktemp("whole")
  return place, assessment.assess(victim, _PLAN, place)


def _records(workdir):
  records = {}
  for path in sorted((workdir / "records").glob("*.npz")):
    with np.load(path) as file:
      records[path.name] = {name: file[name].tobytes() for name in file.files}
  return records


def _predictions(victim, x):
  keys = jax.random.split(jax.random.key(0), len(x))
  return np.argmax(victim.logits_fn(keys, x), axis=-1)


@pytest.mark.parametrize("name", list(attack_table.ATTACKS))
def test_every_attack_understands_what_it_is_given(name, victim):
  entry = attack_table.ATTACKS[name]
  attack = entry.make(entry.balls[0](0.1), _PLAN.settings)
  x, labels = victim.images[:3], victim.labels[:3]
  key = jax.random.key(0)
  y = attack_table.aim(name, key, np.eye(10)[labels], labels)
  keys = jax.random.split(key, 3)
  state = jax.eval_shape(attack.init, keys, x, y)
  after = jax.eval_shape(attack.step, victim.logits_fn, state)
  assert after.x_adv.shape == x.shape
  assert entry.criterion(np.zeros(10), y[0]).shape == ()


_IN_LINF = [
  name
  for name, entry in attack_table.ATTACKS.items()
  if balls.Linf in entry.balls
]


@pytest.mark.slow
def test_every_attack_keeps_to_its_rules(victim, tmp_path):
  names = tuple(_IN_LINF)
  plan = _PLAN._replace(
    attacks=names, radii=(), settings=_PLAN.settings._replace(num_steps=3)
  )
  found = assessment.assess(victim, plan, tmp_path)
  clean = _predictions(victim, victim.images)
  np.testing.assert_array_equal(found.clean_wrong, clean != victim.labels)
  for name in names:
    attacked = found.attacked[name]
    x_adv = attacked.record.x_adv
    assert attacked.num_outside == 0, name
    assert x_adv.min() >= 0 and x_adv.max() <= 1, name
    if attack_table.reach(name) is attack_table.Reach.BALL:
      assert np.abs(x_adv - victim.images).max() <= 0.1 + 1e-6, name
    wrong = _predictions(victim, x_adv) != victim.labels
    if attack_table.reach(name) is attack_table.Reach.NEAREST:
      np.testing.assert_array_equal(attacked.success, wrong, err_msg=name)
      wrong &= np.abs(x_adv - victim.images).max(axis=(1, 2, 3)) <= 0.1 + 1e-6
    np.testing.assert_array_equal(attacked.fooled, wrong, err_msg=name)
    assert wrong[~found.clean_wrong].any(), name


@pytest.mark.parametrize(
  "name", ["targeted_pgd", "least_likely_pgd", "goal_image"]
)
def test_targets_do_not_depend_on_the_number_of_examples(name):
  logits = np.random.default_rng(0).normal(size=(50, 10))
  labels = logits.argmax(axis=-1)
  key = jax.random.key(1)
  y = attack_table.aim(name, key, logits, labels)
  few = attack_table.aim(name, key, logits[:7], labels[:7])
  np.testing.assert_array_equal(y[:7], few)
  target = y.argmax(axis=-1) if y.ndim == 2 else y
  assert np.all(target != labels)
  if name == "least_likely_pgd":
    np.testing.assert_array_equal(target, logits.argmin(axis=-1))
  else:
    assert len(np.unique(target)) == 10


@pytest.mark.parametrize(
  ("names", "problem"),
  [(["fgsm", "pgdd"], "no attack pgdd"), ([], "once"), (["pgd"] * 2, "once")],
)
def test_attacks_that_cannot_be_are_refused(names, problem):
  with pytest.raises(ValueError, match=f"{problem}.*multi_targeted_pgd"):
    attack_table.check(names)


def test_attacks_for_another_norm_are_refused():
  with pytest.raises(ValueError, match="ddn is for L2 only"):
    attack_table.check(["ddn"], balls.Linf)
  attack_table.check(["ddn"], balls.L2)


def test_minimum_norm_attacks_count_where_they_are_in_the_ball(
  victim, tmp_path
):
  plan = _PLAN._replace(attacks=("deepfool",), radii=())
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
    weak = attacks.fgsm(balls.Linf(0.02))
    return {"weak": weak, "strong": attacks.fgsm(ball)}

  monkeypatch.setitem(attack_table.CASCADES, "autoattack", short)
  plan = _PLAN._replace(attacks=("autoattack",), radii=())
  answers, found = iter((True, True)), None
  while found is None:
    with contextlib.suppress(engine.Interrupted):
      found = assessment.assess(
        victim, plan, tmp_path, stop=lambda: next(answers, False)
      )
  attacked = found.attacked["autoattack"]
  assert list(attacked.stages) == ["clean", "weak", "strong"]
  wrong = _predictions(victim, attacked.record.x_adv) != victim.labels
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
      found = assessment.assess(victim, _PLAN, tmp_path, stop=lambda: True)
    except engine.Interrupted:
      stops += 1
  assert stops > 6
  assert _records(tmp_path) == _records(whole[0])
  numbers = [scores.numbers(each, "linf") for each in (found, whole[1])]
  for each in numbers:
    for attack in each["attacks"].values():
      del attack["seconds"]
  assert numbers[0] == numbers[1]


def test_finished_attacks_are_not_run_again(victim, whole, monkeypatch):
  monkeypatch.setattr(engine, "craft", None)
  found = assessment.assess(victim, _PLAN, whole[0])
  np.testing.assert_array_equal(found.curve, whole[1].curve)
  assert (
    found.attacked["targeted_pgd"].seconds
    == whole[1].attacked["targeted_pgd"].seconds
    > 0
  )


def test_a_folder_belongs_to_its_plan_and_model(victim, whole):
  other = victim._replace(
    logits_fn=jax.tree.map(lambda leaf: 2 * leaf, victim.logits_fn)
  )
  for model, plan in (
    (victim, _PLAN._replace(eps=0.2)),
    (victim._replace(images=victim.images[::-1]), _PLAN),
    (other, _PLAN),
  ):
    with pytest.raises(ValueError, match="name another folder"):
      assessment.assess(model, plan, whole[0])


def test_an_attack_does_not_depend_on_the_others(victim, whole, tmp_path):
  plan = _PLAN._replace(attacks=("targeted_pgd",), radii=())
  assessment.assess(victim, plan, tmp_path)
  assert _records(tmp_path) == {
    "targeted_pgd.npz": _records(whole[0])["targeted_pgd.npz"]
  }


def test_the_curve_never_rises_and_ends_at_the_bottom(whole):
  curve = whole[1].curve
  assert np.all(np.diff(curve) <= 0)
  assert curve[0] <= 1 - whole[1].clean_wrong.mean()
  assert curve[-1] == 0.0


def test_leaving_the_ball_is_an_error(victim, tmp_path, monkeypatch):
  entry = attack_table.Entry(lambda ball, _: attacks.fgsm(balls.Linf(0.5)))
  monkeypatch.setitem(attack_table.ATTACKS, "fgsm", entry)
  plan = _PLAN._replace(attacks=("fgsm",), radii=())
  found = assessment.assess(victim, plan, tmp_path)
  right = ~found.clean_wrong
  assert found.attacked["fgsm"].num_outside == right.sum() > 0
  assert not found.attacked["fgsm"].fooled[right].any()
  numbers = scores.numbers(found, "linf")
  assert numbers["robust_accuracy"] == numbers["clean_accuracy"]
  assert remarks.outside(numbers) == ["fgsm"]
  assert "ERROR: fgsm left the ball" in scores.table(numbers).note


def _attacked(fooled, success, steps):
  n = len(fooled)
  distance = dict.fromkeys(("linf", "l2", "l1", "l0"), np.arange(n) / 10)
  record = engine.Record(
    x_adv=np.zeros((n, 8, 8, 1), np.float32),
    success=np.array(success, bool),
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
    plan=_PLAN._replace(radii=(0.1,)),
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


def test_a_data_set_of_another_form_is_explained(model_dir, monkeypatch):
  digits = data.load("digits")
  wide = digits.test._replace(images=np.zeros((358, 28, 28, 1), np.uint8))
  other = digits._replace(name="mnist", test=wide)
  monkeypatch.setattr(data, "load", lambda name, data_dir: other)
  with pytest.raises(ValueError, match=r"dataset='mnist' has .*28.* is for"):
    victims.load(model_dir, dataset="mnist")


_SESSION = """
import json, sys
from absl import flags
from experiments import evaluate
for arguments in json.loads(sys.argv[1]):
  flags.FLAGS.unparse_flags()
  for name in flags.FLAGS:
    flags.FLAGS[name].unparse()
  try:
    evaluate.main(flags.FLAGS(["evaluate", *arguments]))
  except (SystemExit, flags.Error) as error:
    print(type(error).__name__, error)
  print("----")
"""


def _python(*command):
  return subprocess.run(
    [sys.executable, *command],
    capture_output=True,
    text=True,
    check=False,
    cwd=_ROOT,
  )


def test_script(model_dir, tmp_path):
  workdir = tmp_path / "run"
  place, model = f"--workdir={workdir}", f"--model_dir={model_dir}"
  small = (model, "--num_examples=8", "--num_steps=2", "--radii=1/10")
  fgsm = ("--attacks=fgsm", "--eps=1/10")
  session = [
    [place, *small, "--attacks=fgsm,pgdd"],
    [place, *small, "--radii=0.2,0.1"],
    [place, *small, "--eps=x"],
    [place, f"--model_dir={tmp_path / 'nowhere'}"],
    [place, *small, *fgsm],
    [place, *small, *fgsm],
    [place, *small, "--attacks=fgsm", "--eps=0.2"],
  ]
  run = _python("-c", _SESSION, json.dumps(session))
  assert run.returncode == 0, run.stderr
  unknown, radii, eps, missing, first, again, other, _ = run.stdout.split(
    "----"
  )
  assert "no attack pgdd; choose from fgsm, " in unknown
  assert "must be numbers > 0 that increase" in radii
  assert "a fraction such as 8/255" in eps
  assert "python -m experiments.train" in missing
  assert "worst case" in first and f"report: {workdir}" in first
  assert "already finished" in again and "worst case" in again
  assert "has --eps=0.1 where this one has --eps=0.2" in other
  results = json.loads((workdir / "results.json").read_text())
  assert results["num_examples"] == 8
  assert results["curve"]["radii"] == [0.1]
  record = engine.Record.load(workdir / "records" / "fgsm.npz")
  assert record.x_adv.shape == (8, 8, 8, 1)
  assert (workdir / "report.html").exists()


def _command(model_dir, workdir):
  return (
    *("-m", "experiments.evaluate", f"--workdir={workdir}"),
    *(f"--model_dir={model_dir}", "--eps=0.02", "--num_examples=64"),
    *("--attacks=pgd,pgd_restarts", "--num_steps=2000", "--slots=8"),
    *("--radii=0.02",),
  )


def _interrupted(model_dir, workdir, number, wait):
  """Starts the script and signals it `wait` seconds into its first attack."""
  with subprocess.Popen(
    [sys.executable, *_command(model_dir, workdir)],
    cwd=_ROOT,
    stdout=subprocess.PIPE,
    text=True,
  ) as process:
    process.stdout.readline()
    time.sleep(wait)
    process.send_signal(number)
    return process.wait(timeout=120)


@pytest.mark.slow
def test_killed_and_terminated_runs_end_with_the_same_records(
  model_dir, tmp_path
):
  whole, parts = tmp_path / "whole", tmp_path / "parts"
  assert _python(*_command(model_dir, whole)).returncode == 0
  for number, wait, code in (
    (signal.SIGKILL, 0.0, -signal.SIGKILL),
    (signal.SIGTERM, 1.0, common.PREEMPTED),
    (signal.SIGKILL, 2.0, -signal.SIGKILL),
  ):
    assert _interrupted(model_dir, parts, number, wait) == code
    assert not (parts / "results.json").exists()
  assert _python(*_command(model_dir, parts)).returncode == 0
  assert _records(parts) == _records(whole)
