"""Trainings that a script starts, each in a process of its own.

Flags belong to a process, so a script with its own cannot call another's.
"""

import contextlib
import fcntl
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from experiments import common, manners
from jaxadv import engine

# How often a stop is asked for.
_SECONDS = 0.5


def check(arguments: Sequence[str]) -> None:
  """Refuses flags that `experiments.train` does not know, running nothing.

  Raises:
    SystemExit: there are such.
  """
  command = [sys.executable, "-m", "experiments.train", "--only_check_args"]
  if subprocess.run([*command, "--workdir=none", *arguments]).returncode:
    sys.exit("the flags of the training are wrong: mend --train_flags")


def train(
  model_dir: pathlib.Path,
  arguments: Sequence[str],
  stop: Callable[[], bool],
) -> None:
  """Runs `experiments.train` in that folder to its end, or goes on with it.

  Args:
    model_dir: Its `--workdir`.
    arguments: Its other flags.
    stop: When true, the training saves and this process ends.

  Raises:
    SystemExit: with the code of `manners` when stopped; with a message where
      the training failed.
  """
  command = ["-m", "experiments.train", f"--workdir={model_dir}", *arguments]
  print("\n$ python", *command, flush=True)
  with manners.preemptible():
    _wait(model_dir, stop)
    code = _run([sys.executable, *command], stop)
  if code:
    sys.exit(f"the training failed; delete {model_dir} to start it afresh")


def _run(command: Sequence[str], stop: Callable[[], bool]) -> int:
  """The exit code; `Interrupted` where it was stopped, and has saved."""
  with subprocess.Popen(command) as process:
    code = None
    while code is None and not stop():
      with contextlib.suppress(subprocess.TimeoutExpired):
        code = process.wait(_SECONDS)
    if code is None:
      process.terminate()
      process.wait()
  if code in (None, manners.PREEMPTED, manners.INTERRUPTED):
    raise engine.Interrupted
  return code


def _wait(model_dir: pathlib.Path, stop: Callable[[], bool]) -> None:
  """Waits for a training that a killed script has left behind.

  It holds the lock of its folder until it ends.
  """
  with common.explained(f"--workdir={model_dir}"):
    model_dir.mkdir(parents=True, exist_ok=True)
  with open(model_dir / "lock", "a") as lock:
    while not stop():
      try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        time.sleep(_SECONDS)
      else:
        return
  raise engine.Interrupted
