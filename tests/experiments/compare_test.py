"""The comparison in this process; the script in others: flags are global."""

import json
import math
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from experiments import (
  assessment,
  attack_table,
  common,
  comparison,
  evaluation_report,
  recipes,
  victims,
)
from jaxadv import attacks, balls, data, losses, models
from jaxadv.report import page

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_PLAN = assessment.Plan(
  attacks=comparison.ATTACKS,
  ball=balls.Linf,
  eps=0.1,
  radii=(),
  settings=attack_table.Settings(
    num_steps=5, step_size=None, num_restarts=1, num_classes=10
  ),
  seed=3,
  slots=32,
)


def _short(ball, settings):
  """Instead of AutoAttack: what no scale of the logits can hide from."""
  del settings
  return {
    "dlr": attacks.pgd(
      ball, num_steps=5, step_size=ball.eps / 2, loss_fn=losses.dlr
    )
  }


@pytest.fixture(autouse=True)
def short(monkeypatch):
  monkeypatch.setitem(attack_table.CASCADES, "autoattack", _short)


def _linear(variables, x):
  return x.reshape(len(x), -1) @ variables["w"] + variables["b"][None]


def _nearest_mean(scale, first=0):
  """The class of the nearest mean is a linear model; `scale` changes none."""
  digits = data.load("digits")
  images, labels = (part[first:] for part in data.unit(digits.train))
  flat = images.reshape(len(images), -1)
  means = np.stack([flat[labels == c].mean(axis=0) for c in range(10)])
  variables = {"w": 2 * scale * means.T, "b": -scale * (means**2).sum(axis=1)}
  test_images, test_labels = data.unit(digits.test)
  return victims.Victim(
    name=f"times{scale:g}",
    dataset="digits",
    split="test",
    logits_fn=models.bind(_linear, jax.tree.map(np.float32, variables)),
    images=test_images[:60],
    labels=test_labels[:60],
    class_names=digits.class_names,
  )


@pytest.fixture(scope="module")
def source():
  return _nearest_mean(1.0, first=500)


@pytest.fixture(scope="module")
def transfer(source, tmp_path_factory):
  place = tmp_path_factory.mktemp("transfer")
  return comparison.craft(source, _PLAN, place)


_TRAINED = {"defence": "none", "epochs": 3, "seconds_per_epoch": 0.25}


def _numbers(victim, transfer, workdir):
  outcome = assessment.assess(victim, _PLAN, workdir)
  return outcome, comparison.numbers(outcome, "linf", transfer, _TRAINED)


@pytest.fixture
def plain_and_masked(transfer, tmp_path):
  return {
    victim.name: _numbers(victim, transfer, tmp_path / victim.name)
    for victim in (_nearest_mean(1.0), _nearest_mean(2.0**17))
  }


def test_the_whole_budget_is_spent_on_the_source(source, transfer):
  moved = np.abs(transfer.x_adv - source.images).max(axis=(1, 2, 3))
  np.testing.assert_allclose(moved, 0.1, rtol=1e-5)
  assert transfer.source == "times1"


def test_a_scale_hides_gradients_and_is_shown_to(plain_and_masked):
  """The same decisions, so the same robustness; PGD alone is deceived."""
  (_, plain), (_, masked) = plain_and_masked.values()
  assert masked["clean_accuracy"] == plain["clean_accuracy"]
  for name in ("transfer", "worst_case"):
    assert masked[name] == plain[name]
  rates = [
    {k: v["robust_accuracy"] for k, v in each["attacks"].items()}
    for each in (plain, masked)
  ]
  assert rates[1]["autoattack"] == rates[0]["autoattack"]
  assert rates[1]["pgd"] == masked["clean_accuracy"] > rates[0]["pgd"] + 0.1
  assert plain["warnings"] == {}
  assert list(masked["warnings"]) == [
    *("PGD fails", "transfer wins", "AA warns")
  ]
  assert "cross-entropy is zero for" in masked["warnings"]["AA warns"]


def test_transfer_is_judged_here_and_counts_in_the_worst_case(
  plain_and_masked, transfer
):
  outcome, numbers = plain_and_masked["times1"]
  predicted = outcome.victim.logits_fn(None, transfer.x_adv).argmax(axis=-1)
  robust = (predicted == outcome.victim.labels) & ~outcome.clean_wrong
  assert numbers["transfer"]["robust_accuracy"] == pytest.approx(robust.mean())
  alone = outcome._replace(
    attacked={
      name: attacked._replace(fooled=np.zeros_like(attacked.fooled))
      for name, attacked in outcome.attacked.items()
    }
  )
  numbers = comparison.numbers(alone, "linf", transfer, _TRAINED)
  assert numbers["worst_case"]["robust_accuracy"] == pytest.approx(
    robust.mean()
  )
  # Inputs that are outside the ball have not fooled anybody.
  far = transfer._replace(x_adv=np.ones_like(transfer.x_adv))
  numbers = comparison.numbers(alone, "linf", far, _TRAINED)
  assert numbers["transfer"]["robust_accuracy"] == numbers["clean_accuracy"]
  assert comparison.numbers(alone, "linf", None, _TRAINED)["transfer"] is None


def _found(fgsm, pgd, auto, transfer, suspicions=()):
  rates = {"fgsm": fgsm, "pgd": pgd, "autoattack": auto}
  found = {
    "attacks": {name: {"robust_accuracy": r} for name, r in rates.items()}
  }
  found["attacks"]["autoattack"]["suspicions"] = list(suspicions)
  rate = {"source": "other", "robust_accuracy": transfer}
  return found | {"transfer": None if transfer is None else rate}


@pytest.mark.parametrize(
  ("found", "signs"),
  [
    (_found(0.6, 0.5, 0.41, 0.9), []),
    (_found(0.01, 0.0, 0.0, None), []),
    (_found(0.6, 0.5, 0.39, 0.9), ["PGD fails"]),
    (_found(0.49, 0.5, 0.48, 0.49), []),
    (_found(0.4, 0.5, 0.48, 0.9), ["FGSM wins"]),
    (_found(0.6, 0.5, 0.48, 0.4), ["transfer wins"]),
    (_found(0.6, 0.5, 0.48, 0.9, ["a", "b"]), ["AA warns"]),
  ],
)
def test_warnings(found, signs):
  assert list(comparison.warnings(found)) == signs


def test_table_and_report(plain_and_masked, tmp_path):
  outcomes = {name: each[0] for name, each in plain_and_masked.items()}
  found = {name: each[1] for name, each in plain_and_masked.items()}
  found["times1"] |= {"transfer": None}
  found["times1"]["training"] = dict.fromkeys(_TRAINED)
  found = json.loads(json.dumps(found, allow_nan=False))
  table = comparison.table(found)
  plain, masked = (
    dict(zip(table.columns, row, strict=True)) for row in table.rows
  )
  assert plain["transfer"] is plain["epochs"] is plain["s/epoch"] is None
  assert plain["warnings"] is None
  assert masked["warnings"].startswith("PGD fails, transfer wins")
  assert masked["epochs"] == 3 and masked["s/epoch"] == 0.25
  assert masked["clean"] == plain["clean"]
  assert "WARNING times131072, PGD fails: PGD leaves " in table.note
  assert "whole budget on times1." in table.note and "null" not in table.note
  found["times1"]["training"]["defence"] = "null_class"
  found["times1"]["attacks"]["pgd"]["num_outside"] = 1
  note = comparison.table(found).note
  assert "times1 may answer null" in note and "ERROR times1: pgd left" in note
  path = tmp_path / "report.html"
  evaluation_report.write(
    path, "Two", outcomes, found, opening=[page.Section("First", "", [table])]
  )
  text = path.read_text()
  assert text.index("First") < text.index("Accuracy under attack")
  assert "transfer wins" in text


def test_what_a_training_says(tmp_path):
  assert set(comparison.training(tmp_path).values()) == {None}
  common.write_json(tmp_path / "model.json", {"defence": "pgd", "model": "mlp"})
  results = {"epochs": 7, "seconds_per_epoch": 2.5, "steps": 70}
  common.write_json(tmp_path / "results.json", results)
  assert comparison.training(tmp_path) == {
    **{"defence": "pgd", "epochs": 7, "seconds_per_epoch": 2.5}
  }


# Runs the script once for each list of arguments, importing it once only, with
# FGSM instead of AutoAttack.
_SESSION = """
import json, sys
from absl import flags
from experiments import attack_table, compare
from jaxadv import attacks
short = lambda ball, settings: {"fgsm": attacks.fgsm(ball)}
attack_table.CASCADES["autoattack"] = short
print("HELPERS", json.dumps(compare.HELPERS))
for arguments in json.loads(sys.argv[1]):
  flags.FLAGS.unparse_flags()
  for name in flags.FLAGS:
    flags.FLAGS[name].unparse()
  print("----")
  code = 0
  try:
    compare.main(flags.FLAGS(["compare", *arguments]))
  except (SystemExit, flags.Error) as error:
    code = getattr(error, "code", None)
    print(type(error).__name__, error, flush=True)
sys.exit(code if isinstance(code, int) else 0)
"""
_SMALL = (
  *("--num_examples=20", "--num_steps=2", "--slots=8", "--eps=1/10"),
  "--train_flags=--epochs=1 --batch_size=600 --eval_attack_steps=1 "
  "--num_validation=8 --num_test=8",
)


def _session(*arguments):
  return [sys.executable, "-c", _SESSION, json.dumps(arguments)]


def _run(*arguments):
  run = subprocess.run(
    _session(*arguments),
    capture_output=True,
    text=True,
    check=False,
    cwd=_ROOT,
  )
  assert run.returncode == 0, run.stderr
  return run.stdout.split("----")


def test_flags_that_cannot_be_are_explained(tmp_path):
  place = f"--workdir={tmp_path / 'run'}"
  head, nothing, unknown, twice, number, missing = _run(
    [place],
    [place, "--defences=none,madry"],
    [place, "--defences=pgd", f"--model_dirs={tmp_path / 'pgd'}"],
    [place, "--defences=pgd", "--train_flags=--epochs=2 --number=3"],
    [place, f"--model_dirs={tmp_path / 'nowhere'}"],
  )
  helpers = json.loads(head.partition("HELPERS")[2])
  needy = [name for name, row in recipes.RECIPES.items() if row.helpers]
  assert sorted(helpers) == sorted(needy)
  assert set(helpers.values()) <= set(recipes.RECIPES)
  assert "at least one model" in nothing
  assert "no defence madry; choose from none, " in unknown
  assert "each name once, got ['pgd', 'pgd']" in twice
  assert "number differs from model to model" in number
  assert "train a model with `python -m experiments.train" in missing
  assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_script(tmp_path):
  first, second = tmp_path / "first", tmp_path / "second"
  made = [f"--workdir={first}", *_SMALL, "--defences=none,distillation"]
  student = first / "models" / "distillation"
  loaded = [
    *(f"--workdir={second}", *_SMALL, f"--model_dirs={student}"),
    f"--transfer_from={first / 'models' / 'teacher'}",
  ]
  other = [*made[:-1], "--defences=none,pgd"]
  _, trained, again, changed, given = _run(made, made, other, loaded)
  results = json.loads((first / "results.json").read_text())
  assert list(results) == ["none", "distillation"]
  assert results["none"]["transfer"] is None
  assert results["distillation"]["transfer"]["source"] == "none"
  assert results["distillation"]["num_examples"] == 20
  for numbers in results.values():
    assert numbers["training"]["epochs"] == 1
    assert 0 < numbers["training"]["seconds_per_epoch"] < math.inf
  assert trained.count("$ python") == 3
  assert f"--helper_dirs={first / 'models' / 'teacher'}" in trained
  assert "already finished" in again and "$ python" not in again
  assert "has --defences=none,distillation where this one has" in changed
  assert f"report: {second / 'report.html'}" in given
  row = json.loads((second / "results.json").read_text())["distillation"]
  assert row["transfer"]["source"] == "teacher"
  white_box = results["distillation"]["attacks"]["pgd"]["robust_accuracy"]
  assert row["attacks"]["pgd"]["robust_accuracy"] == white_box
  assert (first / "report.html").exists()


def _interrupted(arguments, line, number, log):
  """Starts the script; signals it when it has printed such a line."""
  with (
    open(log, "w") as out,
    subprocess.Popen(_session(arguments), cwd=_ROOT, stdout=out) as process,
  ):
    while line not in log.read_text():
      assert process.poll() is None
      time.sleep(0.1)
    time.sleep(1.0)
    process.send_signal(number)
    return process.wait(timeout=120)


def _lasting(results):
  """Without what depends on the clock."""
  for numbers in results.values():
    del numbers["training"]["seconds_per_epoch"]
    for attack in numbers["attacks"].values():
      del attack["seconds"]
  return results


@pytest.mark.slow
def test_killed_and_terminated_runs_end_alike(tmp_path):
  whole, parts = tmp_path / "whole", tmp_path / "parts"
  small = [*_SMALL, "--defences=pgd"]
  _run([f"--workdir={whole}", *small])
  arguments = [f"--workdir={parts}", *small]
  for line, number, code in (
    # The training outlives a killed script, and the next one waits for it.
    ("$ python", signal.SIGKILL, -signal.SIGKILL),
    ("$ python", signal.SIGTERM, common.PREEMPTED),
    ("pgd: fgsm", signal.SIGKILL, -signal.SIGKILL),
  ):
    log = tmp_path / "log"
    assert _interrupted(arguments, line, number, log) == code
    assert not (parts / "results.json").exists()
  _run(arguments)
  results = [
    json.loads((workdir / "results.json").read_text())
    for workdir in (whole, parts)
  ]
  assert _lasting(results[0]) == _lasting(results[1])
