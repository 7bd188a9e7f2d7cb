"""The loop in this process; the script in others, for flags are global."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import optax
import pytest

from experiments import common, fitting, manners, networks
from jaxadv import attacks, balls, criteria, data, models, train_state
from jaxadv.defences import training
from tests.experiments import scripts

_SCHEDULE = fitting.Schedule(num_epochs=3, batch_size=16, seed=1)
_MODULE = models.MLP(features=(8,))
_ADAM = optax.adam(0.01)
_ATTACK = attacks.pgd(
  balls.Linf(0.1), num_steps=2, step_size=0.1, criterion=criteria.never
)


def _step_fn(state, batch):
  return training.train_step(
    state,
    batch,
    train_apply=train_state.train_apply(_MODULE),
    robust_loss=training.madry,
    attack=_ATTACK,
  )


def _fit(
  workdir,
  *,
  stop=lambda: False,
  schedule=_SCHEDULE,
  ema_decay=0.0,
  step_fn=_step_fn,
  validate=None,
):
  """Three epochs of five steps; validation prefers the first."""
  workdir.mkdir(exist_ok=True)
  examples = data.first(data.load("digits").train, 80)
  state = train_state.create(
    _MODULE,
    _ADAM,
    jax.random.key(0),
    data.batch(examples, [0])["image"],
    ema_decay=ema_decay,
  )

  def by_size(variables):
    size = sum(float(abs(leaf).sum()) for leaf in jax.tree.leaves(variables))
    return {"size": size, "score": size}

  return fitting.fit(
    workdir,
    state,
    step_fn,
    validate or by_size,
    examples,
    schedule,
    stop,
  )


def _bits(snapshot):
  state = snapshot.state.replace(key=jax.random.key_data(snapshot.state.key))
  leaves = jax.tree.leaves((state, snapshot.totals, snapshot.best))
  return [np.asarray(leaf).tobytes() for leaf in leaves]


def _after(num_steps):
  """Asks to stop once that many steps are done."""
  calls = iter(range(1, num_steps + 1))
  return lambda: next(calls) == num_steps


def test_goes_on_with_the_same_bits(tmp_path):
  whole = _fit(tmp_path / "whole")
  assert int(whole.state.step) == 15
  assert whole.meta["best_step"] == 5
  for num_steps in (
    3,
    2,
    6,
  ):  # Within an epoch, at its end, in the next but one.
    with pytest.raises(fitting.Preempted):
      _fit(tmp_path / "parts", stop=_after(num_steps))
  parts = _fit(tmp_path / "parts")
  assert _bits(parts) == _bits(whole)
  assert parts.meta["best_step"] == 5
  metrics = [tmp_path / name / "metrics.jsonl" for name in ("whole", "parts")]
  assert metrics[0].read_text() == metrics[1].read_text()
  assert len(metrics[0].read_text().splitlines()) == 3


def test_a_kill_loses_the_steps_since_the_checkpoint(tmp_path):
  class Killed(Exception):
    pass

  def kill():
    raise Killed

  whole = _fit(tmp_path / "whole", ema_decay=0.9)
  schedule = _SCHEDULE._replace(checkpoint_every=2)
  calls = iter([False] * 7)
  with pytest.raises(Killed):
    _fit(
      tmp_path / "killed",
      stop=lambda: next(calls, None) is None and kill(),
      schedule=schedule,
      ema_decay=0.9,
    )
  # What a kill may leave behind: a line of a step that is not in a checkpoint.
  common.append_metrics(tmp_path / "killed", 8, {"size": 0.0})
  folder = tmp_path / "killed" / "checkpoints"
  assert os.listdir(folder) == ["8"]
  (folder / "9.orbax-checkpoint-tmp").mkdir()
  again = _fit(tmp_path / "killed", schedule=schedule, ema_decay=0.9)
  assert _bits(again) == _bits(whole)


def test_a_finished_run_trains_no_more(tmp_path):
  first = _fit(tmp_path)
  again = _fit(tmp_path)
  assert _bits(again) == _bits(first)
  assert again.meta == first.meta


def test_a_loss_that_is_not_finite_is_explained(tmp_path):
  def broken(state, batch):
    state, metrics = _step_fn(state, batch)
    return state, metrics._replace(loss=metrics.loss * np.nan)

  with pytest.raises(FloatingPointError, match="lower --learning_rate"):
    _fit(tmp_path, step_fn=broken)


def _overflowing(at, where):
  """Steps whose losses are finite; the update of step `at` overflows."""

  def step_fn(state, batch):
    state, metrics = _step_fn(state, batch)
    factor = jax.numpy.where(state.step == at, np.nan, 1.0)
    spoil = lambda tree: jax.tree.map(lambda leaf: factor * leaf, tree)
    return state.replace(**{where: spoil(getattr(state, where))}), metrics

  return step_fn


@pytest.mark.parametrize("where", ["params", "averaged"])
def test_weights_that_are_no_numbers_are_never_kept(where, tmp_path):
  with pytest.raises(FloatingPointError, match=r"step 10: .*--learning_rate"):
    _fit(tmp_path, step_fn=_overflowing(10, where), ema_decay=0.9)
  assert os.listdir(tmp_path / "checkpoints") == ["5"]
  assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1


def test_within_an_epoch_too(tmp_path):
  schedule = _SCHEDULE._replace(checkpoint_every=2)
  with pytest.raises(FloatingPointError, match="step 4: "):
    _fit(tmp_path, step_fn=_overflowing(4, "params"), schedule=schedule)
  assert os.listdir(tmp_path / "checkpoints") == ["2"]
  with pytest.raises(FloatingPointError, match="step 4: "):
    _fit(tmp_path, step_fn=_overflowing(4, "params"), stop=_after(2))


def test_a_score_that_is_no_number_is_never_the_best(tmp_path):
  scores = iter([0.5, np.nan, np.nan])
  end = _fit(tmp_path, validate=lambda variables: {"score": next(scores)})
  assert end.meta["best_step"] == 5
  assert end.meta["best_score"] == 0.5


_SMALL = (
  *("--defence=pgd", "--attack_steps=2", "--eval_attack_steps=2"),
  *("--num_test=20", "--num_validation=20"),
)

_DEVICES = """
import os, sys
flag = "--xla_force_host_platform_device_count="
os.environ["XLA_FLAGS"] = flag + sys.argv[1]
import jax, numpy as np, optax
from experiments import fitting
from jaxadv import attacks, balls, criteria, data, models, train_state
from jaxadv.defences import training

module = models.StridedCNN()
examples = data.first(data.load("digits").train, 96)
attack = attacks.pgd(
  balls.Linf(0.1), num_steps=2, step_size=0.1, criterion=criteria.never
)
step_fn = lambda state, batch: training.train_step(
  state, batch, train_apply=train_state.train_apply(module),
  robust_loss=training.madry, attack=attack,
)
x = data.batch(examples, [0])["image"]
state = train_state.create(module, optax.sgd(0.1), jax.random.key(0), x)
end = fitting.fit(
  __import__("pathlib").Path(sys.argv[2]), state, step_fn,
  lambda variables: {"score": 0.0}, examples,
  fitting.Schedule(num_epochs=2, batch_size=int(sys.argv[3]), seed=0),
)
leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(end.state.params)]
np.savez(sys.argv[2] + "/weights.npz", *leaves)
"""


def test_devices_share_the_rows_of_a_batch(tmp_path):
  weights = []
  for number in (1, 4):
    place = tmp_path / str(number)
    place.mkdir()
    run = scripts.python("-c", _DEVICES, str(number), str(place), "32")
    assert run.returncode == 0, run.stderr
    with np.load(place / "weights.npz") as file:
      weights.append([file[name] for name in file.files])
  for one, four in zip(*weights, strict=True):
    np.testing.assert_allclose(one, four, atol=1e-4)
  run = scripts.python("-c", _DEVICES, "4", str(tmp_path), "33")
  assert "batch_size=33 must be a multiple of the 4 devices" in run.stderr


def test_script(tmp_path):
  place, one = f"--workdir={tmp_path}", "--epochs=1"
  refused = tmp_path / "refused"
  _, bad, number, first, again, other = scripts.outputs(
    "train",
    [place, *_SMALL, one, "--eps=-1"],
    [f"--workdir={refused}", *_SMALL, one, "--number=3"],
    [place, *_SMALL, one, "--batch_size=1260"],
    [place, *_SMALL, one, "--batch_size=1260"],
    [place, *_SMALL, "--epochs=2", "--batch_size=1260"],
  )
  assert "--eps=-1.0: must be > 0" in bad
  assert "--number=3: --defence=pgd tunes none" in number
  assert not refused.exists()
  *_, progress, finished = first.splitlines()
  assert progress.startswith("step 1 ")
  assert finished.startswith("finished: ")
  assert again.startswith("already finished: ")
  assert other.startswith("SystemExit")
  assert "has --epochs=1 where this one has --epochs=2" in other

  results = json.loads((tmp_path / "results.json").read_text())
  assert results["steps"] == results["best_step"] == 1
  assert 0.0 <= results["last_test_pgd_accuracy"] <= 1.0
  logits_fn, info = networks.load_model(tmp_path)
  assert info == {
    "dataset": "digits",
    "model": "mlp",
    "defence": "pgd",
    "num_classes": 10,
    "image_shape": [8, 8, 1],
  }
  images, labels = data.unit(data.load("digits").test)
  keys = jax.random.split(jax.random.key(0), len(images))
  right = np.argmax(logits_fn(keys, images), axis=-1) == labels
  assert right.mean() == pytest.approx(results["best_test_clean_accuracy"])


def _command(workdir):
  return (
    *("-m", "experiments.train", f"--workdir={workdir}"),
    *(*_SMALL, "--epochs=40", "--batch_size=128"),
  )


def _interrupted(workdir, number, wait):
  """Starts the script and signals it `wait` seconds into its epochs."""
  with subprocess.Popen(
    [sys.executable, *_command(workdir)],
    cwd=scripts.ROOT,
    stdout=subprocess.DEVNULL,
  ) as process:
    metrics = workdir / "metrics.jsonl"
    size = metrics.stat().st_size if metrics.exists() else 0
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
      if metrics.exists() and metrics.stat().st_size > size:
        break
      time.sleep(0.05)
    time.sleep(wait)
    process.send_signal(number)
    return process.wait(timeout=60)


@pytest.mark.slow
def test_killed_and_terminated_runs_end_with_the_same_bits(tmp_path):
  whole, parts = tmp_path / "whole", tmp_path / "parts"
  assert scripts.python(*_command(whole)).returncode == 0
  assert _interrupted(parts, signal.SIGKILL, 0.3) == -signal.SIGKILL
  assert _interrupted(parts, signal.SIGTERM, 0.1) == manners.PREEMPTED
  assert _interrupted(parts, signal.SIGKILL, 0.0) == -signal.SIGKILL
  assert not (parts / "results.json").exists()
  assert scripts.python(*_command(parts)).returncode == 0
  for name in ("metrics.jsonl", "model.json"):
    assert (whole / name).read_bytes() == (parts / name).read_bytes()
  for which in ("best", "last"):
    weights = [
      jax.tree.leaves(networks.load_model(workdir, which)[0])
      for workdir in (whole, parts)
    ]
    for a, b in zip(*weights, strict=True):
      np.testing.assert_array_equal(a, b)
