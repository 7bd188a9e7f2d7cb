"""Batches of a split: in order with padding, or shuffled without end."""

import itertools
from collections.abc import Iterator
from typing import TypedDict

import grain
import numpy as np
from numpy import typing as npt

from jaxadv.data import datasets


class Batch(TypedDict):
  """A batch of B rows.

  Attributes:
    image: float32 `[B, H, W, C]` in [0, 1].
    label: int32 `[B]`.
    mask: bool `[B]`, False in rows that only fill up the batch.
  """

  image: np.ndarray
  label: np.ndarray
  mask: np.ndarray


def batch(
  examples: datasets.Examples,
  indices: npt.ArrayLike,
  *,
  batch_size: int | None = None,
) -> Batch:
  """Returns the examples at `indices`, repeating the first to `batch_size`.

  Args:
    examples: a split.
    indices: integers `[n]`, at least one.
    batch_size: the number of rows, at least n; by default n.

  Raises:
    ValueError: if there are no indices, or more than `batch_size`.
  """
  rows = np.asarray(indices)
  num_rows = len(rows)
  size = num_rows if batch_size is None else batch_size
  if not 0 < num_rows <= size:
    raise ValueError(
      f"indices: got {num_rows} for batch_size={batch_size}; give at least "
      "one, and at most batch_size"
    )
  rows = np.concatenate([rows, np.repeat(rows[:1], size - num_rows)])
  white = np.float32(examples.white)
  return Batch(
    image=examples.images[rows].astype(np.float32) / white,
    label=examples.labels[rows],
    mask=np.arange(size) < num_rows,
  )


def eval_batches(
  examples: datasets.Examples, batch_size: int
) -> Iterator[Batch]:
  """Yields every example once, in order; the last batch is padded.

  Raises:
    ValueError: if `batch_size` is not positive.
  """
  _check_positive(batch_size)
  rows = np.arange(len(examples.labels))
  return (
    batch(examples, rows[start : start + batch_size], batch_size=batch_size)
    for start in range(0, len(rows), batch_size)
  )


def train_batches(
  examples: datasets.Examples,
  batch_size: int,
  *,
  seed: int,
  start_step: int = 0,
) -> Iterator[Batch]:
  """Yields shuffled full batches without end.

  Batch `i` is a function of `examples`, `batch_size`, `seed` and `i` alone, so
  `start_step=i` goes on exactly as an uninterrupted run would. Every epoch is
  a new permutation of all examples; a batch may span two epochs.

  Args:
    examples: a split.
    batch_size: rows per batch.
    seed: from 0 to 2^32 - 1.
    start_step: how many batches have been used.

  Raises:
    ValueError: if `batch_size` is not positive or `start_step` is negative.
  """
  _check_positive(batch_size)
  if start_step < 0:
    raise ValueError(f"start_step={start_step}: must not be negative")
  steps = (
    grain.MapDataset.range(len(examples.labels))
    .shuffle(seed=seed)
    .repeat()
    .batch(batch_size)
  )
  return (batch(examples, steps[i]) for i in itertools.count(start_step))


def _check_positive(batch_size: int) -> None:
  if batch_size < 1:
    raise ValueError(f"batch_size={batch_size}: must be at least 1")
