"""The driver for data sets: any number of examples, all local devices."""

import contextlib
import os
from collections.abc import Callable, Iterator

import jax
import numpy as np
import rich.progress

from jaxadv import call_checks, checks, judge, types
from jaxadv.engine.job import Job
from jaxadv.engine.record import Record, distances


class Interrupted(Exception):
  """`craft` was asked to stop; its checkpoint holds what is done so far."""


@contextlib.contextmanager
def memory_for(slots: int) -> Iterator[None]:
  """Says what to do where the device has not enough of it.

  Raises:
    MemoryError: it has not.
  """
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    raise MemoryError(
      f"slots={slots} examples at once need more memory than the device has: "
      f"take fewer ({str(error).splitlines()[0]})"
    ) from error


def craft(
  attack: types.Attack,
  logits_fn: types.LogitsFn,
  key: jax.Array,
  images: np.ndarray,
  y: types.PyTree,
  *,
  criterion: types.Criterion | None = None,
  slots: int = 128,
  progress: bool = True,
  checkpoint: str | os.PathLike | None = None,
  stop: Callable[[], bool] = lambda: False,
  index: np.ndarray | None = None,
  name: str = "attack",
) -> Record:
  """Attacks a data set of any size through a fixed number of slots.

  A finished row is written out and its slot refilled on the device, so the time
  is that of the steps which the examples need, not of the slowest example of
  each batch. The slots are shared out over all local devices. The key of an
  example is `fold_in(key, its index)`: its result does not depend on slots,
  order or devices (up to the rounding of the network).

  Args:
    attack: The kernel.
    logits_fn: The model, bound by `models.bind`.
    key: A PRNG key.
    images: Inputs [N, ...] in the bounds of the attack, float32 or float64.
    y: What the attack wants, one row per input (labels [N]).
    criterion: Success, of the same `y`, for an attack with `criteria.never`;
      others have said themselves what they are after.
    slots: Rows per device that are attacked at once; the batch size.
    progress: Show a progress bar (on a terminal).
    checkpoint: A file for partial results. A call that finds it goes on where
      it stands and ends as if it had never stopped; it is removed at the end.
    stop: Asked about once a second; when true, saves and raises.
    index: The number of each example [N], for its key and the record; by
      default its row. For a part of a data set, the places in the whole: then
      an example's result does not depend on the others of the part.
    name: What the progress bar calls it.

  Returns:
    A `Record` of NumPy arrays.

  Raises:
    Interrupted: `stop` said so; the checkpoint, if any, was written.
    MemoryError: the device has too little for so many slots.
    TypeError: arguments in another order, inputs of another type, labels that
      are not integers.
    ValueError: inputs out of bounds or not finite, a radius beyond the bounds,
      labels out of range, shapes that do not fit, a criterion that is missing
      or contradicts the attack's, a checkpoint of another job.
  """
  images = call_checks.canonical(images)
  y = jax.tree.map(np.asarray, y)
  checks.num_steps(slots, "slots")
  call_checks.attack_call(attack, logits_fn, key, images, y, "images")
  criterion = call_checks.judged_by(attack.threat, criterion)
  index = _numbers(index, len(images))
  with memory_for(slots):
    call_checks.warn_of_outputs(
      judge.outputs(logits_fn, key, images[:slots], batch_size=slots)
    )
    with jax.default_matmul_precision("highest"):
      job = Job(attack, logits_fn, key, images, y, index, slots, checkpoint)
      _work_through(job, name, progress, stop)
    return _record(job, logits_fn, key, criterion)


def _work_through(job: Job, name, progress, stop) -> None:
  with _progress_bar(progress) as bar:
    task = bar.add_task(name, total=len(job.images))
    while job.unfinished():
      job.advance()
      bar.update(task, completed=job.completed())
      if stop():
        job.save()
        if job.checkpoint is None:
          raise Interrupted("stopped; nothing was saved without a checkpoint")
        raise Interrupted(f"stopped; what is done is in {job.checkpoint}")


def _record(job: Job, logits_fn, key, criterion: types.Criterion) -> Record:
  # The job's own model and key are on every device, which would all judge.
  attack, steps = job.attack, job.steps
  won = judge.success(
    logits_fn,
    key,
    job.x_adv,
    job.y,
    criterion,
    batch_size=job.slots_asked,
    index=job.index,
  )
  inside = judge.inside(
    attack.threat.ball, job.images, job.x_adv, bounds=attack.threat.bounds
  )
  record = Record(
    x_adv=job.x_adv,
    success=won & inside,
    inside=inside,
    bounded=np.asarray(attack.threat.ball is not None),
    distance=distances(job.images, job.x_adv),
    steps=steps,
    forwards=steps * np.asarray(attack.forwards),
    backwards=steps * np.asarray(attack.backwards),
    index=job.index,
  )
  job.forget()
  return record


def _numbers(index: np.ndarray | None, num_examples: int) -> np.ndarray:
  if index is None:
    return np.arange(num_examples, dtype=np.int32)
  index = np.asarray(index)
  if index.shape != (num_examples,) or index.dtype.kind not in "iu":
    raise ValueError(
      f"index must hold one whole number for each of {num_examples} examples, "
      f"got shape {index.shape} and dtype {index.dtype}"
    )
  if index.min() < 0 or index.max() > np.iinfo(np.int32).max:
    raise ValueError(
      f"index must hold numbers from 0 to 2^31 - 1, got {index.min()} to "
      f"{index.max()}"
    )
  return index.astype(np.int32)


def _progress_bar(shown: bool) -> rich.progress.Progress:
  return rich.progress.Progress(
    rich.progress.TextColumn("{task.description}"),
    rich.progress.BarColumn(),
    rich.progress.TaskProgressColumn(),
    rich.progress.TextColumn("{task.completed:.0f}/{task.total:.0f} examples"),
    rich.progress.TimeElapsedColumn(),
    rich.progress.TimeRemainingColumn(),
    disable=not shown,
  )
