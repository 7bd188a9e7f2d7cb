"""A folder of finished records, each returned only for what it is of.

The folder is of one model, data set and key, and refuses others. A record is
also of an attack: where that has changed, or rows are asked for that it lacks,
it is made anew. `NAME.npz` is a `Record` whose archive has the fingerprint and
the seconds it took as its comment. While it is under way there are its
checkpoint and the seconds so far, `NAME.*.partial.npz` and `.json`, whose names
tell attacks and rows apart; the old record stays until the new one is there.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import pickle
import textwrap
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from jaxadv import types
from jaxadv.engine import fingerprints
from jaxadv.engine.record import Damaged, Record

# What reading a file raises that does not hold what was written.
_DAMAGE = (
  *(AttributeError, EOFError, LookupError, NotImplementedError, OSError),
  *(TypeError, ValueError, pickle.UnpicklingError),
  *(zipfile.BadZipFile, zlib.error),
)


class Store:
  """Records of attacks on one model, data set and key.

  Args:
    folder: Where they are; made where it is missing.
    logits_fn: The model.
    key: What all other keys are made of.
    images: Inputs [N, ...].
    y: What belongs to them, such as labels [N].

  Raises:
    Damaged: its file `of.json` cannot be read.
    ValueError: the folder is of something else; says of what.
  """

  def __init__(
    self,
    folder: str | os.PathLike,
    logits_fn: types.LogitsFn,
    key: jax.Array,
    images: np.ndarray,
    y: types.PyTree,
  ):
    self._folder = pathlib.Path(folder)
    self._of = {
      **fingerprints.versions(),
      **fingerprints.of_model(logits_fn, images),
      "data set": fingerprints.digest(images, y),
      "key or seed": fingerprints.digest(key),
    }
    path = self._folder / "of.json"
    if not path.exists():
      self._folder.mkdir(parents=True, exist_ok=True)
      _write(path, self._of)
      return
    with _undamaged(path):
      different = fingerprints.differences(_read(path), self._of)
    self._refuse(self._folder, different)

  def record(
    self,
    name: str,
    attack: str,
    rows: np.ndarray,
    make: Callable[[pathlib.Path], Record],
  ) -> tuple[Record, float]:
    """The record of an attack on some rows: kept, or made and kept.

    One that holds more rows serves, too.

    Args:
      name: Of the attack, and so of its files.
      attack: What the attack is: digests of all that its record depends on
        beside model, images and the store's key.
      rows: Places in the data set, the `index` of the record.
      make: Makes it, with a file for its checkpoint.

    Returns:
      The record, and the seconds that making it took, calls that were stopped
      included.

    Raises:
      Damaged: a file cannot be read.
      ValueError: the file is of another model, data set or key.
    """
    path = self._folder / f"{name}.npz"
    kept = self._kept(path, attack, rows)
    if kept is not None:
      return kept
    checkpoint = self._checkpoint(name, attack, rows)
    clock = checkpoint.with_suffix(".json")
    spent, started = _seconds(clock), time.monotonic()
    try:
      record = make(checkpoint)
    finally:
      spent += time.monotonic() - started
      _write(clock, {"seconds": spent})
    self._keep(path, record, {"attack": attack, "seconds": spent})
    clock.unlink()
    return record, spent

  def _kept(
    self, path: pathlib.Path, attack: str, rows: np.ndarray
  ) -> tuple[Record, float] | None:
    if not path.exists():
      return None
    with _undamaged(path):
      with zipfile.ZipFile(path) as file:
        theirs = json.loads(file.comment)
      different = fingerprints.differences(theirs, self._of)
      same_attack = theirs["attack"] == attack
      seconds = float(theirs["seconds"])
      record = Record.load(path)
      place = {int(row): at for at, row in enumerate(record.index)}
    self._refuse(path, different)
    missing = sum(int(row) not in place for row in rows)
    if same_attack and not missing:
      at = np.asarray([place[int(row)] for row in rows])
      return _part(record, at), seconds
    why = f"lacks {missing} of {len(rows)} examples"
    if not same_attack:
      why = "is of another attack or other settings"
    print(f"{path} {why}: attacking anew", flush=True)
    return None

  def _checkpoint(
    self, name: str, attack: str, rows: np.ndarray
  ) -> pathlib.Path:
    """Where partial results are; those of the name but of others are gone."""
    mine = fingerprints.digest(np.asarray(rows, np.int64))
    path = self._folder / f"{name}.{attack[:8]}{mine[:8]}.partial.npz"
    for other in self._folder.glob(f"{name}.*.partial.npz"):
      if other != path:
        print(
          f"{other} is of another attack, other settings or other examples: "
          "attacking anew",
          flush=True,
        )
        other.unlink()
    # Their clocks; those of calls that were killed at their end are alone.
    for clock in self._folder.glob(f"{name}.*.partial.json"):
      if clock != path.with_suffix(".json"):
        clock.unlink(missing_ok=True)
    return path

  def _keep(
    self, path: pathlib.Path, record: Record, more: dict[str, Any]
  ) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
      record.save(temporary)
      # A comment, so that the file is read as any other record.
      with zipfile.ZipFile(temporary, "a") as file:
        file.comment = json.dumps(self._of | more).encode()
      os.replace(temporary, path)
    finally:
      temporary.unlink(missing_ok=True)

  def _refuse(self, path: pathlib.Path, different: str) -> None:
    if different:
      raise ValueError(
        f"{path} is of another {different}: choose another folder, or delete "
        f"{self._folder}"
      )


def _part(record: Record, at: np.ndarray) -> Record:
  def rows(column):
    return column[at] if np.ndim(column) else column

  columns = {
    name: rows(column)
    for name, column in vars(record).items()
    if name != "distance"
  }
  distance = {name: rows(column) for name, column in record.distance.items()}
  return dataclasses.replace(record, **columns, distance=distance)


@contextlib.contextmanager
def _undamaged(path: pathlib.Path) -> Iterator[None]:
  try:
    yield
  except (FileNotFoundError, PermissionError, Damaged):
    raise
  except _DAMAGE as error:
    reason = textwrap.shorten(f"{type(error).__name__}: {error}", 150)
    raise Damaged(
      f"{path} is damaged ({reason}): delete it, and what it held is made anew"
    ) from error


def _seconds(clock: pathlib.Path) -> float:
  if not clock.exists():
    return 0.0
  with _undamaged(clock):
    return float(_read(clock)["seconds"])


def _read(path: pathlib.Path) -> Any:
  return json.loads(path.read_bytes())


def _write(path: pathlib.Path, content: Any) -> None:
  temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
  temporary.write_text(json.dumps(content))
  os.replace(temporary, path)
