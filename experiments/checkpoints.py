"""What training keeps, through Orbax: one folder per step, whole or absent.

A checkpoint holds the weights of the last step and those of the best one, and
all else that training needs to go on. A new one is committed before the old one
is deleted, so a kill at any moment leaves one that can be read.
"""

import contextlib
import os
import pathlib
import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import linen as nn

from jaxadv import engine, train_state, types


class Snapshot(NamedTuple):
  """What a checkpoint holds.

  Attributes:
    state: The train state.
    totals: Sums over the steps of an epoch so far.
    best: The variables of the best validation score so far, on the host.
    meta: Numbers about the run, as JSON.
  """

  state: train_state.TrainState
  totals: types.PyTree
  best: types.PyTree
  meta: dict[str, Any]


@jax.jit
def _finite(variables: types.PyTree) -> jax.Array:
  leaves = jax.tree.leaves(variables)
  return jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]).all()


def check_finite(state: train_state.TrainState) -> None:
  """Refuses weights, statistics of batches or averages that are no numbers.

  A loss tells too late: it is that of the weights before the update.

  Raises:
    FloatingPointError: some are not finite.
  """
  if not _finite((state.variables, state.eval_variables)):
    raise FloatingPointError(
      f"the weights are not finite any more at step {int(state.step)}: lower "
      "--learning_rate, in another --workdir"
    )


def host_copy(tree: types.PyTree) -> types.PyTree:
  """NumPy copies, which outlive the donation of the buffers."""
  return jax.tree.map(lambda leaf: np.array(leaf, copy=True), tree)


def manager(workdir: str | os.PathLike) -> ocp.CheckpointManager:
  """The checkpoints of a run; use as a context manager."""
  return ocp.CheckpointManager(
    (pathlib.Path(workdir) / "checkpoints").absolute(),
    options=ocp.CheckpointManagerOptions(
      max_to_keep=1, enable_async_checkpointing=False
    ),
  )


def save(saver: ocp.CheckpointManager, snapshot: Snapshot) -> None:
  """Commits a checkpoint of the snapshot's step.

  Raises:
    FloatingPointError: its weights are not finite.
  """
  state = snapshot.state
  check_finite(state)
  saver.save(
    int(state.step),
    args=ocp.args.Composite(
      last=ocp.args.StandardSave(state.eval_variables),
      best=ocp.args.StandardSave(snapshot.best),
      rest=ocp.args.StandardSave((_rest(state), snapshot.totals)),
      meta=ocp.args.JsonSave(snapshot.meta),
    ),
  )


def restore(saver: ocp.CheckpointManager, like: Snapshot) -> Snapshot | None:
  """The newest checkpoint, on the devices of `like`; None if there is none.

  Raises:
    engine.Damaged: it cannot be read.
  """
  if saver.latest_step() is None:
    return None
  state = like.state
  advice = f"delete {saver.directory} to train from the start"
  with _readable(saver, advice):
    content = saver.restore(
      saver.latest_step(),
      args=ocp.args.Composite(
        last=ocp.args.StandardRestore(state.eval_variables),
        best=ocp.args.StandardRestore(like.best),
        rest=ocp.args.StandardRestore((_rest(state), like.totals)),
        meta=ocp.args.JsonRestore(),
      ),
    )
    rest, totals = content.rest
  return Snapshot(
    _joined(rest, content.last), totals, content.best, content.meta
  )


@contextlib.contextmanager
def _readable(saver: ocp.CheckpointManager, advice: str) -> Iterator[None]:
  """Says which checkpoint cannot be read, whatever Orbax raises for it."""
  try:
    yield
  except Exception as error:
    _quieten()
    reason = textwrap.shorten(str(error), 150)
    raise engine.Damaged(
      f"the checkpoint in {saver.directory} cannot be read ({reason}): {advice}"
    ) from error


def _quieten() -> None:
  """Leaves out what Orbax's threads print after a read that has failed."""
  late = ("Event loop is closed", "Encountered error while reading array")
  hook, other = sys.excepthook, sys.unraisablehook

  def on_error(kind, error, trace):
    if not str(error).startswith(late):
      hook(kind, error, trace)

  def on_unraisable(ignored):
    if not str(ignored.exc_value).startswith(late):
      other(ignored)

  sys.excepthook, sys.unraisablehook = on_error, on_unraisable


def _rest(state: train_state.TrainState) -> train_state.TrainState:
  """The state without its `eval_variables`, which are stored on their own."""
  if state.averaged is None:
    return state.replace(params=None, batch_stats=None)
  return state.replace(averaged=None)


def _joined(
  rest: train_state.TrainState, variables: types.PyTree
) -> train_state.TrainState:
  if rest.params is not None:
    return rest.replace(averaged=variables)
  return rest.replace(
    params=variables["params"], batch_stats=variables.get("batch_stats", {})
  )


def restore_variables(
  workdir: str | os.PathLike,
  module: nn.Module,
  image_shape: Sequence[int],
  which: str,
) -> types.PyTree:
  """The "best" or the "last" weights of a run, on the first device.

  Raises:
    FileNotFoundError: there is no checkpoint.
    ValueError: `which` is neither.
    engine.Damaged: the checkpoint cannot be read.
  """
  if which not in ("best", "last"):
    raise ValueError(f'which={which!r}: choose "best" or "last"')
  if not (pathlib.Path(workdir) / "checkpoints").exists():
    raise FileNotFoundError(f"{workdir} holds no checkpoint yet")
  x = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
  shapes = jax.eval_shape(module.init, jax.random.key(0), x)
  place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  target = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
    shapes,
  )
  with manager(workdir) as saver:
    if saver.latest_step() is None:
      raise FileNotFoundError(f"{workdir} holds no checkpoint yet")
    with _readable(saver, "train the model anew, in another folder"):
      content = saver.restore(
        saver.latest_step(),
        args=ocp.args.Composite(**{which: ocp.args.StandardRestore(target)}),
      )
  return content[which]
