"""What `craft` returns, and the files that hold it."""

import dataclasses
import os
import pathlib
import pickle
import zipfile
import zlib
from collections.abc import Mapping

import numpy as np

# Coordinates that moved by less do not count as changed (L0).
_CHANGED = 1e-6


class Damaged(ValueError):
  """A file does not hold what was written to it."""


@dataclasses.dataclass(frozen=True)
class Record:
  """One row per example, in the order of the data set.

  Attributes:
    x_adv: The adversarial inputs [N, ...].
    success: Whether the criterion holds at `x_adv`, judged afresh, and `x_adv`
      is where the attack has to stay [N].
    inside: Whether `x_adv` is finite, in the bounds and, where the attack knows
      one, in the ball [N]. False is an error of the attack.
    bounded: Whether the attack knows a ball: if not, a success may be at any
      distance.
    distance: `linf`, `l2`, `l1` and `l0` (coordinates changed by more than
      1e-6) of `x_adv - x`, each [N].
    steps: Steps taken [N].
    forwards: Forward passes used [N].
    backwards: Backward passes used [N].
    index: The example's place in the data set, or the number it was given [N].
  """

  x_adv: np.ndarray
  success: np.ndarray
  inside: np.ndarray
  bounded: np.ndarray
  distance: dict[str, np.ndarray]
  steps: np.ndarray
  forwards: np.ndarray
  backwards: np.ndarray
  index: np.ndarray

  def save(self, path: str | os.PathLike) -> None:
    """Writes the record as one `.npz` file, whole or not at all."""
    columns = dict(vars(self))
    distance = columns.pop("distance")
    columns |= {f"distance_{norm}": values for norm, values in distance.items()}
    save_npz(path, columns)

  @classmethod
  def load(cls, path: str | os.PathLike) -> "Record":
    """Reads what `save` wrote.

    Raises:
      Damaged: The file holds something else.
    """
    columns = load_npz(path)
    distance = {
      name.removeprefix("distance_"): columns.pop(name)
      for name in list(columns)
      if name.startswith("distance_")
    }
    names = {field.name for field in dataclasses.fields(cls)} - {"distance"}
    if set(columns) != names or not distance:
      raise _damaged(path, f"it holds {', '.join(columns) or 'nothing'}")
    per_row = {**columns, **distance}
    del per_row["bounded"]
    lengths = {np.shape(rows)[:1] for rows in per_row.values()}
    if len(lengths) != 1:
      raise _damaged(path, "its columns differ in length")
    return cls(distance=distance, **columns)


def distances(x: np.ndarray, x_adv: np.ndarray) -> dict[str, np.ndarray]:
  """The four norms of `x_adv - x`, one row per example."""
  delta = (np.asarray(x_adv, np.float64) - x).reshape(len(x), -1)
  magnitude = np.abs(delta)
  return {
    "linf": magnitude.max(axis=1, initial=0.0).astype(np.float32),
    "l2": np.sqrt(np.square(delta).sum(axis=1)).astype(np.float32),
    "l1": magnitude.sum(axis=1).astype(np.float32),
    "l0": (magnitude > _CHANGED).sum(axis=1).astype(np.int32),
  }


def load_npz(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """Reads what `save_npz` wrote.

  Raises:
    Damaged: The file holds something else.
  """
  try:
    with np.load(path) as file:
      return {name: file[name] for name in file.files}
  except (FileNotFoundError, PermissionError):
    raise
  except (
    *(AttributeError, EOFError, LookupError, NotImplementedError, OSError),
    *(TypeError, ValueError, pickle.UnpicklingError),
    *(zipfile.BadZipFile, zlib.error),
  ) as error:
    raise _damaged(path, str(error)) from error


def _damaged(path: str | os.PathLike, reason: str) -> Damaged:
  return Damaged(
    f"{path} is damaged ({reason}): delete it, and what it held is made anew"
  )


def save_npz(path: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes arrays to a temporary name beside `path`, then renames."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
  try:
    with open(temporary, "wb") as file:
      np.savez(file, **arrays)  # type: ignore[arg-type]
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)
