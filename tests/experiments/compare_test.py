"""The script, in a process of its own."""

import json
import math
import shutil
import signal
import subprocess
import time

import pytest

from experiments import manners, recipes
from tests.experiments import scripts

# FGSM instead of AutoAttack.
_FIRST = """
from experiments import attack_table
from jaxadv import attacks
short = lambda ball, settings: {"fgsm": attacks.fgsm(ball)}
attack_table.CASCADES["autoattack"] = short
print("HELPERS", json.dumps(script.HELPERS))
"""
_SMALL = (
  *("--num_examples=20", "--num_steps=2", "--slots=8", "--eps=1/10"),
  "--train_flags=--epochs=1 --batch_size=600 --eval_attack_steps=1 "
  "--num_validation=8 --num_test=8",
)


def _session(*runs):
  return scripts.session("compare", *runs, first=_FIRST)


def _run(*runs):
  return scripts.outputs("compare", *runs, first=_FIRST)


def test_flags_that_cannot_be_are_explained(tmp_path):
  place = f"--workdir={tmp_path / 'run'}"
  head, nothing, unknown, twice, number, quote, other, words, missing = _run(
    [place],
    [place, "--defences=none,madry"],
    [place, "--defences=pgd", f"--model_dirs={tmp_path / 'pgd'}"],
    [place, "--defences=pgd", "--train_flags=--epochs=2 --number=3"],
    [place, "--defences=pgd", "--train_flags=--epochs='2"],
    [place, "--defences=pgd", "--train_flags=--epoch=2"],
    [place, "--defences=none", "pgd"],
    [place, f"--model_dirs={tmp_path / 'nowhere'}"],
  )
  helpers = json.loads(head.partition("HELPERS")[2])
  needy = [name for name, row in recipes.RECIPES.items() if row.helpers]
  assert sorted(helpers) == sorted(needy)
  assert set(helpers.values()) <= set(recipes.RECIPES)
  assert "at least one model" in nothing
  assert "no defence madry; choose from none, " in unknown
  assert "need each name once, got ['pgd', 'pgd']" in twice
  assert "number differs from model to model" in number
  assert "No closing quotation" in quote
  assert "mend --train_flags" in other
  assert "pgd: no flag; write --flag=value" in words
  assert f"--model_dirs={tmp_path / 'nowhere'}: " in missing
  assert "train a model with `python -m experiments.train" in missing
  assert not (tmp_path / "run").exists()


_TWO_DATA_SETS = """
from experiments import victims
script.victims.load = lambda path, **_: victims.Victim(
  path, f"data of {path}", "test", None, [path != "/second"], [], ()
)
"""


def test_models_of_two_data_sets_are_refused(tmp_path):
  place = f"--workdir={tmp_path / 'run'}"
  _, given, source = scripts.outputs(
    "compare",
    [place, "--model_dirs=/first,/second", "--eps=0.1"],
    [place, "--defences=pgd", "--model_dirs=/1", "--transfer_from=/second"],
    first=_TWO_DATA_SETS,
  )
  said = "/second is for data of /second, {0} for data of {0}: compare models"
  assert said.format("/first") in given
  assert said.format("/1") in source
  assert not (tmp_path / "run").exists()


def test_what_a_training_refuses_can_be_mended(tmp_path):
  defences = (f"--workdir={tmp_path}", "--defences=none")
  bad = [*defences, "--train_flags=--batch_size=9999"]
  run = scripts.python("-m", "experiments.compare", *bad)
  assert run.returncode == 1
  assert "--batch_size=9999 is more than the 1260 training images" in run.stderr
  assert not (tmp_path / "flags.txt").exists()


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
  copy = tmp_path / "copy"
  shutil.move(student, copy)
  shutil.copytree(first / "models" / "none", student)
  _, stale = _run(loaded)
  assert "holds results of other weights or examples" in stale
  assert "worst case" not in stale
  # A training that another teacher would go on with.
  teacher = first / "models" / "teacher"
  shutil.rmtree(student)
  shutil.copytree(copy, student)
  (student / "results.json").unlink()
  shutil.rmtree(teacher)
  shutil.copytree(first / "models" / "none", teacher)
  flagfile = f"--flagfile={student / 'flags.txt'}"
  (refused,) = scripts.outputs("train", [flagfile, f"--workdir={student}"])[1:]
  assert "trained anew since" in refused


def _interrupted(arguments, line, number, log):
  """Starts the script; signals it when it has printed such a line."""
  with (
    open(log, "w") as out,
    subprocess.Popen(
      _session(arguments), cwd=scripts.ROOT, stdout=out
    ) as process,
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
    ("$ python", signal.SIGTERM, manners.PREEMPTED),
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
