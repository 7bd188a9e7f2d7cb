"""The script, in a process of its own."""

import json
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from experiments import manners, networks, victims
from jaxadv import criteria, data, engine, losses
from jaxadv.defences import null_class
from tests.experiments import assessment_cases as cases
from tests.experiments import scripts


def test_a_data_set_of_another_form_is_explained(model_dir, monkeypatch):
  digits = data.load("digits")
  wide = digits.test._replace(images=np.zeros((358, 28, 28, 1), np.uint8))
  other = digits._replace(name="mnist", test=wide)
  monkeypatch.setattr(victims, "_dataset", lambda name, data_dir: other)
  with pytest.raises(ValueError, match=r"dataset='mnist' has .*28.* is for"):
    victims.load(model_dir, dataset="mnist")


def test_a_rejection_is_no_success_where_the_recipe_says_so(
  model_dir, monkeypatch
):
  found = victims.load(model_dir, num_examples=1)
  assert found.criterion is criteria.misclassified
  assert found.loss_fn is losses.cross_entropy
  load = networks.load_model

  def rejecting(*arguments):
    logits_fn, info = load(*arguments)
    return logits_fn, info | {"defence": "null_class"}

  monkeypatch.setattr(networks, "load_model", rejecting)
  found = victims.load(model_dir, num_examples=1)
  assert found.criterion is null_class.fooled
  assert found.loss_fn is null_class.wrong_margin


def test_script(model_dir, tmp_path):
  workdir = tmp_path / "run"
  place, model = f"--workdir={workdir}", f"--model_dir={model_dir}"
  small = (model, "--num_examples=8", "--num_steps=2", "--radii=1/10")
  fgsm = ("--attacks=fgsm", "--eps=1/10")
  _, unknown, radii, eps, missing, first, again, other = scripts.outputs(
    "evaluate",
    [place, *small, "--attacks=fgsm,pgdd"],
    [place, *small, "--radii=0.2,0.1"],
    [place, *small, "--eps=x"],
    [place, f"--model_dir={tmp_path / 'nowhere'}"],
    [place, *small, *fgsm],
    [place, *small, *fgsm],
    [place, *small, "--attacks=fgsm", "--eps=0.2"],
  )
  assert "no attack 'pgdd'; choose from fgsm, " in unknown
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


def test_results_of_weights_that_are_no_more(
  model_dir, other_model_dir, tmp_path
):
  model, workdir = tmp_path / "model", tmp_path / "run"
  shutil.copytree(model_dir, model)
  (model / "results.json").write_text("{}")  # As a finished training has it.
  run = [f"--workdir={workdir}", f"--model_dir={model}", "--num_examples=4"]
  run += ["--attacks=fgsm", "--eps=0.1", "--radii="]
  _, first, again = scripts.outputs("evaluate", run, run)
  assert "worst case" in first and "worst case" in again
  assert "unfinished" not in first
  (model / "results.json").unlink()
  _, unfinished = scripts.outputs("evaluate", run)
  assert "its training is unfinished" in unfinished
  results = (workdir / "results.json").read_bytes()
  shutil.rmtree(model)
  shutil.copytree(other_model_dir, model)
  done = scripts.python("-m", "experiments.evaluate", *run)
  assert done.returncode == 1 and "worst case" not in done.stdout
  assert "results of other weights or examples" in done.stderr
  assert (workdir / "results.json").read_bytes() == results
  (workdir / "results.json").unlink()
  _, told = scripts.outputs("evaluate", run)
  assert "records is of another model: choose another folder" in told


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
    cwd=scripts.ROOT,
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
  assert scripts.python(*_command(model_dir, whole)).returncode == 0
  for number, wait, code in (
    (signal.SIGKILL, 0.0, -signal.SIGKILL),
    (signal.SIGTERM, 1.0, manners.PREEMPTED),
    (signal.SIGKILL, 2.0, -signal.SIGKILL),
  ):
    assert _interrupted(model_dir, parts, number, wait) == code
    assert not (parts / "results.json").exists()
  assert scripts.python(*_command(model_dir, parts)).returncode == 0
  assert cases.records(parts) == cases.records(whole)
