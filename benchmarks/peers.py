"""Starts programs in the environment of the peers."""

import pathlib
import subprocess
import sys
from collections.abc import Sequence

_ROOT = pathlib.Path(__file__).resolve().parents[1]


class MissingError(RuntimeError):
  """A library is not installed there; the message names it."""


def run(python: str, module: str, arguments: Sequence[object]) -> None:
  """Runs a module of this package by another interpreter, to its end.

  What it writes to its standard error is shown as it comes.

  Args:
    python: The interpreter that has the peers.
    module: Its name, such as "benchmarks.peer".
    arguments: For the command line; paths are made absolute.

  Raises:
    MissingError: it misses a module.
    RuntimeError: it failed; its standard error says why.
  """
  words = [
    str(word.resolve()) if isinstance(word, pathlib.Path) else str(word)
    for word in arguments
  ]
  command = [str(pathlib.Path(python).absolute()), "-m", module, *words]
  said = []
  with subprocess.Popen(
    command, cwd=_ROOT, stderr=subprocess.PIPE, text=True
  ) as process:
    for line in process.stderr or ():
      sys.stderr.write(line)
      said.append(line)
  if process.returncode:
    last = said[-1].strip() if said else "nothing was said"
    missing = last.startswith("ModuleNotFoundError")
    raise (MissingError if missing else RuntimeError)(f"{module}: {last}")
