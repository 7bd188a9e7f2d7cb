"""Whatever stops a script, it ends in one line and a code that says what."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from experiments import manners
from jaxadv import engine
from tests.experiments import scripts


def test_a_folder_is_held_by_one_process(tmp_path):
  with open(tmp_path / "lock", "a") as other:
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(SystemExit, match="another process works there") as told:
      manners.alone(tmp_path)
  assert f"--workdir={tmp_path}: " in str(told.value)
  manners.alone(tmp_path)
  manners.alone(tmp_path)


_HOLDER = """
import pathlib, sys, time
from experiments import manners
manners.alone(pathlib.Path(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


def test_a_second_script_ends_at_once_and_a_killed_one_holds_nothing(tmp_path):
  command = [sys.executable, "-c", _HOLDER, str(tmp_path)]
  with subprocess.Popen(
    command, cwd=scripts.ROOT, stdout=subprocess.PIPE, text=True
  ) as holder:
    assert holder.stdout.readline() == "held\n"
    run = scripts.python("-m", "experiments.train", f"--workdir={tmp_path}")
    holder.kill()
  assert run.returncode == 1
  assert run.stderr.splitlines()[-1].startswith(
    f"--workdir={tmp_path}: another process works there"
  )
  assert "Traceback" not in run.stderr
  assert os.listdir(tmp_path) == ["lock"]
  manners.alone(tmp_path)


def test_signals_ask_to_stop_and_ctrl_c_insists():
  before = [signal.getsignal(number) for number in (2, 15)]
  try:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, code in (
      (signal.SIGTERM, manners.PREEMPTED),
      (signal.SIGINT, manners.INTERRUPTED),
    ):
      stop = manners.on_sigterm()
      with pytest.raises(SystemExit) as told, manners.preemptible():
        os.kill(os.getpid(), number)
        assert stop()
        raise engine.Interrupted
      assert told.value.code == code
    with pytest.raises(KeyboardInterrupt), manners.preemptible():
      manners.on_sigterm()
      os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), signal.SIGINT)
      time.sleep(1)
  finally:
    manners.on_sigterm()
    for number, handler in zip((2, 15), before, strict=True):
      signal.signal(number, handler)


@pytest.mark.parametrize(
  ("error", "code"),
  [
    (KeyboardInterrupt(), manners.INTERRUPTED),
    (FloatingPointError("step 3"), "step 3"),
    (engine.Damaged("file x"), "file x"),
  ],
)
def test_a_script_ends_in_one_line(error, code):
  @manners.script
  def main(argv):
    raise error

  with pytest.raises(SystemExit) as told:
    main([])
  assert told.value.code == code


def _started(*arguments):
  # A shell that runs the tests in the background may ignore Ctrl-C, which a
  # process inherits; a handler it does not.
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  try:
    return subprocess.Popen(
      [sys.executable, "-m", *arguments],
      cwd=scripts.ROOT,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
  finally:
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("early", [True, False])
def test_ctrl_c(early, tmp_path):
  metrics = tmp_path / "metrics.jsonl"
  with _started(
    "experiments.train", f"--workdir={tmp_path}", "--epochs=5000"
  ) as run:
    deadline = time.monotonic() + 120
    while not early and not (metrics.exists() and metrics.stat().st_size):
      assert time.monotonic() < deadline and run.poll() is None
      time.sleep(0.05)
    time.sleep(1.0)
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=60)
  assert run.returncode == 130, err
  assert "run the same command again" in out + err
  assert "Traceback" not in err
  assert early or os.listdir(tmp_path / "checkpoints")


@pytest.mark.parametrize("platforms", ["cuda", "nonsense"])
def test_a_platform_that_is_not_there(platforms, tmp_path, monkeypatch):
  if platforms == "cuda" and shutil.which("nvidia-smi"):
    pytest.skip("this machine has a CUDA device, which the test must lack")
  monkeypatch.setenv("JAX_PLATFORMS", platforms)
  run = scripts.python("-m", "experiments.train", f"--workdir={tmp_path / 'x'}")
  assert run.returncode == 1
  assert run.stderr.splitlines()[-1].startswith(f"JAX_PLATFORMS={platforms}: ")
  assert "Traceback" not in run.stderr
  assert not (tmp_path / "x").exists()
