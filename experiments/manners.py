"""How a script ends: on a signal, on a damaged file, without a device.

Each way is one line and an exit code of its own, never a traceback:

  1    refused; the line says what to do
  75   SIGTERM came, and the work is saved: `PREEMPTED`
  130  Ctrl-C, likewise where there was something to save: `INTERRUPTED`
"""

import contextlib
import fcntl
import functools
import os
import pathlib
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import IO

import jax

import experiments
from jaxadv import engine

# Exit code of a run that was asked to stop and has saved: start it again.
PREEMPTED = 75
# What shells give to Ctrl-C.
INTERRUPTED = 128 + signal.SIGINT

# The signals that have asked to stop.
_asked: list[int] = []
# The locks of this process, by folder; open until it ends.
_held: dict[pathlib.Path, IO[str]] = {}


def on_sigterm() -> Callable[[], bool]:
  """Catches SIGTERM; returns whether to stop, for loops to ask."""
  _asked.clear()
  signal.signal(signal.SIGTERM, lambda number, _: _asked.append(number))
  return lambda: bool(_asked)


def _on_sigint(number: int, frame: object) -> None:
  del frame
  if number in _asked:
    raise KeyboardInterrupt
  _asked.append(number)
  print("\nstopping; Ctrl-C again does not wait", file=sys.stderr)


@contextlib.contextmanager
def preemptible() -> Iterator[None]:
  """Lets what is inside save itself, then exits.

  Ctrl-C asks to stop as SIGTERM does, and the second time does not wait.

  Raises:
    SystemExit: it was interrupted, with `PREEMPTED` or `INTERRUPTED`; or
      `--slots` ask for more memory than there is.
    KeyboardInterrupt: it came to its end in spite of Ctrl-C.
  """
  before = signal.getsignal(signal.SIGINT)
  # Where Ctrl-C is ignored, as in the background of a shell, it stays so.
  if before is not signal.SIG_IGN:
    signal.signal(signal.SIGINT, _on_sigint)
  try:
    yield
  except engine.Interrupted as stopped:
    print(f"{str(stopped) or 'stopped'}; run the same command again to go on")
    sys.exit(stop_code())
  except MemoryError as error:
    sys.exit(f"--slots: {error}")
  finally:
    signal.signal(signal.SIGINT, before)
  if signal.SIGINT in _asked:
    raise KeyboardInterrupt


def stop_code() -> int:
  """The exit code of a run that was asked to stop."""
  return INTERRUPTED if signal.SIGINT in _asked else PREEMPTED


def script(main: Callable[[list[str]], None]) -> Callable[[list[str]], None]:
  """A script's `main` that ends in one line, whatever stops it."""

  @functools.wraps(main)
  def run(argv: list[str]) -> None:
    if signal.getsignal(signal.SIGINT) is experiments.leave:
      signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
      main(argv)
    except KeyboardInterrupt:
      print("\ninterrupted; run the same command again to go on")
      sys.exit(INTERRUPTED)
    except (FloatingPointError, engine.Damaged) as error:
      raise SystemExit(str(error)) from error

  return run


def check_devices() -> None:
  """Refuses a JAX that has nothing to compute on.

  Raises:
    SystemExit: it has not.
  """
  try:
    jax.devices()
  # The latter where a plug-in for the platform is not installed.
  except (RuntimeError, AssertionError) as error:
    reason = textwrap.shorten(str(error) or "it is not installed", 200)
    chosen = os.environ.get("JAX_PLATFORMS", "")
    raise SystemExit(
      f"JAX_PLATFORMS={chosen}: JAX cannot compute there ({reason}); leave it "
      "out, or choose cpu"
    ) from error


def alone(workdir: pathlib.Path) -> None:
  """Holds the folder for this process, until it ends in whatever way.

  Raises:
    SystemExit: another process works there, or it cannot be written.
  """
  if workdir.resolve() in _held:
    return
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    lock = open(workdir / "lock", "a")  # noqa: SIM115
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError as error:
    raise SystemExit(
      f"--workdir={workdir}: another process works there; wait for its end, or "
      "choose another folder"
    ) from error
  except OSError as error:
    raise SystemExit(
      f"--workdir={workdir} cannot be written ({error}): choose another"
    ) from error
  _held[workdir.resolve()] = lock


@contextlib.contextmanager
def undamaged(
  path: str | os.PathLike,
  advice: str = "delete it and run the same command again",
) -> Iterator[None]:
  """Says of which file it is that its content cannot be understood.

  Raises:
    engine.Damaged: it cannot.
  """
  try:
    yield
  except (AttributeError, LookupError, TypeError, ValueError) as error:
    reason = textwrap.shorten(f"{type(error).__name__}: {error}", 150)
    raise engine.Damaged(f"{path} is damaged ({reason}): {advice}") from error
