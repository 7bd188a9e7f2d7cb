"""The training loop of `experiments.train`, which can be killed at any moment.

A run that was stopped goes on from its last checkpoint and ends with the bits
of one that never stopped: the data, the keys and the weights of a step depend
on its number alone.
"""

import functools
import itertools
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.progress
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments import checkpoints, common
from jaxadv import data, engine, train_state, types
from jaxadv.defences import training

StepFn = Callable[
  [train_state.TrainState, training.Batch],
  tuple[train_state.TrainState, training.Metrics],
]
# From the variables to a row of metrics, of which "score" picks the best.
ValidateFn = Callable[[types.PyTree], dict[str, float]]


class Preempted(engine.Interrupted):
  """The run was asked to stop and has saved; start it again."""


class Schedule(NamedTuple):
  """How long and how often.

  Attributes:
    num_epochs: Passes over the training set.
    batch_size: Examples per step.
    seed: Of the order of the examples.
    checkpoint_every: Steps between checkpoints within an epoch; 0 for none.
      There is one after every epoch.
  """

  num_epochs: int
  batch_size: int
  seed: int
  checkpoint_every: int = 0

  def steps_per_epoch(self, examples: data.Examples) -> int:
    """Full batches in the training set, at least one."""
    return max(1, len(examples.labels) // self.batch_size)

  def num_steps(self, examples: data.Examples) -> int:
    """The steps of the whole run."""
    return self.num_epochs * self.steps_per_epoch(examples)


def fit(
  workdir: pathlib.Path,
  state: train_state.TrainState,
  step_fn: StepFn,
  validate: ValidateFn,
  examples: data.Examples,
  schedule: Schedule,
  stop: Callable[[], bool] = lambda: False,
) -> checkpoints.Snapshot:
  """Trains, or goes on where `workdir` stands; returns the end.

  After every epoch: validation, a line of metrics.jsonl, the best variables so
  far (of equal scores the later), a checkpoint.

  The rows of a batch are shared out over all local devices.

  Raises:
    FloatingPointError: the loss or the weights are not finite any more.
    Preempted: `stop` said so; everything is saved.
    ValueError: a batch cannot be shared out evenly.
  """
  check_batch_size(schedule.batch_size)
  nothing = training.Metrics(jnp.zeros(()), jnp.zeros(()))
  state, nothing = jax.device_put((state, nothing), _everywhere())
  snapshot = checkpoints.Snapshot(
    state,
    nothing,
    checkpoints.host_copy(state.eval_variables),
    {"best_step": 0, "best_score": -1.0, "seconds": 0.0, "epoch_seconds": []},
  )
  with checkpoints.manager(workdir) as saver, _progress_bar() as bar:
    snapshot = checkpoints.restore(saver, snapshot) or snapshot
    common.truncate_metrics(workdir, int(snapshot.state.step))
    loop = _Loop(workdir, saver, validate, snapshot.meta)
    return loop.run(snapshot, step_fn, examples, schedule, stop, bar)


def check_batch_size(batch_size: int) -> None:
  """Refuses rows that cannot be shared out evenly.

  Raises:
    ValueError: they cannot.
  """
  if batch_size % len(jax.local_devices()):
    raise ValueError(
      f"batch_size={batch_size} must be a multiple of the "
      f"{len(jax.local_devices())} devices that share its rows"
    )


class _Loop:
  """What stays the same from step to step, and the clock."""

  def __init__(self, workdir, saver, validate, meta):
    self.workdir = workdir
    self.saver = saver
    self.validate = validate
    self.started = time.monotonic() - meta["seconds"]
    self.epoch_started = time.monotonic()

  def run(self, snapshot, step_fn, examples, schedule, stop, bar):
    # A pytree, so that models it holds are arguments, not constants.
    step_fn = jax.device_put(jax.tree_util.Partial(step_fn), _everywhere())
    epoch = schedule.steps_per_epoch(examples)
    total = schedule.num_steps(examples)
    start = int(snapshot.state.step)
    task = bar.add_task("train", total=total, completed=start, loss=np.nan)
    state, totals, previous = snapshot.state, snapshot.totals, None
    for step, batch in _numbered(examples, schedule, start, total):
      state, totals, metrics = _advance(step_fn, state, totals, batch)
      # One step ahead keeps the device busy; more would delay a stop.
      if previous is not None:
        bar.update(task, completed=step - 1, loss=float(previous))
      previous = metrics.loss
      snapshot = snapshot._replace(state=state, totals=totals)
      if step % epoch == 0:
        snapshot = self.end_of_epoch(snapshot, epoch, bar)
        totals = snapshot.totals
        self.save(snapshot)
        self.epoch_started = time.monotonic()
      elif schedule.checkpoint_every and step % schedule.checkpoint_every == 0:
        self.save(snapshot)
      if step < total and stop():
        self.save(snapshot)
        raise Preempted(f"stopped after step {step} of {total}")
    bar.update(task, completed=total)
    return snapshot

  def end_of_epoch(self, snapshot, num_steps, bar):
    step = int(snapshot.state.step)
    means = jax.tree.map(lambda sum_: float(sum_) / num_steps, snapshot.totals)
    if not np.isfinite(means.loss):
      raise FloatingPointError(
        f"the loss is {means.loss} at step {step}: lower --learning_rate, in "
        "another --workdir"
      )
    checkpoints.check_finite(snapshot.state)
    seconds = time.monotonic() - self.epoch_started
    row = {"train_loss": means.loss, "train_accuracy": means.accuracy}
    row |= self.validate(snapshot.state.eval_variables)
    score = row.pop("score")
    common.append_metrics(self.workdir, step, row)
    bar.console.print(_line(step, row))
    meta, best = snapshot.meta, snapshot.best
    meta = meta | {"epoch_seconds": [*meta.get("epoch_seconds", []), seconds]}
    if score >= meta["best_score"]:
      meta = meta | {"best_step": step, "best_score": score}
      best = checkpoints.host_copy(snapshot.state.eval_variables)
    totals = jax.tree.map(jnp.zeros_like, snapshot.totals)
    return snapshot._replace(totals=totals, best=best, meta=meta)

  def save(self, snapshot):
    snapshot.meta["seconds"] = time.monotonic() - self.started
    if self.saver.latest_step() != int(snapshot.state.step):
      checkpoints.save(self.saver, snapshot)


def _devices() -> Mesh:
  return Mesh(np.asarray(jax.local_devices()), ("rows",))


def _everywhere() -> NamedSharding:
  """A copy on each device."""
  return NamedSharding(_devices(), PartitionSpec())


@functools.partial(jax.jit, donate_argnums=(1, 2))
def _advance(step_fn: StepFn, state, totals, batch):
  """One step, over all devices as over one: means are over the whole batch."""
  state, metrics = step_fn(state, batch)
  after = state, jax.tree.map(jnp.add, totals, metrics), metrics
  return jax.lax.with_sharding_constraint(after, _everywhere())


def _numbered(
  examples: data.Examples, schedule: Schedule, start: int, total: int
) -> Iterator[tuple[int, training.Batch]]:
  """The batches from step `start` on, with the number of steps then done.

  Their rows are dealt out to the devices.
  """
  dealt = NamedSharding(_devices(), PartitionSpec("rows"))
  batches = data.train_batches(
    examples, schedule.batch_size, seed=schedule.seed, start_step=start
  )
  for step, batch in enumerate(
    itertools.islice(batches, total - start), start + 1
  ):
    rows = {"image": batch["image"], "label": batch["label"]}
    yield step, jax.device_put(rows, dealt)


def _line(step: int, row: dict[str, Any]) -> str:
  return f"step {step}  " + "  ".join(
    f"{name} {value:.4f}" for name, value in row.items()
  )


class _Rate(rich.progress.ProgressColumn):
  def render(self, task: rich.progress.Task) -> str:
    return f"{task.speed:.1f} steps/s" if task.speed else ""


def _progress_bar() -> rich.progress.Progress:
  console = rich.console.Console(soft_wrap=True)
  return rich.progress.Progress(
    rich.progress.TextColumn("{task.description}"),
    rich.progress.BarColumn(),
    rich.progress.MofNCompleteColumn(),
    _Rate(),
    rich.progress.TextColumn("loss {task.fields[loss]:.4f}"),
    rich.progress.TimeRemainingColumn(),
    console=console,
    disable=not console.is_terminal,
  )
