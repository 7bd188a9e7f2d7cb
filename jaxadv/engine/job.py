"""The host side of `craft`: deals examples to devices, collects, saves."""

import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxadv import programs, types
from jaxadv.engine import slots as slots_lib
from jaxadv.engine.fingerprints import compared, fingerprint
from jaxadv.engine.record import Damaged, load_npz, save_npz

# Few examples start with fewer slots, and once, as the last examples finish,
# slots shrink to this share of their number: each size compiles once more. None
# are below this share of the slots asked for, nor below this number.
_SHARE = 4
_SMALLEST_SHARE = 8
_SMALLEST = 8
# Aim of one segment in seconds: how often progress shows and work is saved.
_SEGMENT_SECONDS = 1.0
_SAVE_SECONDS = 20.0
# Saving takes less than this share of the time, however large the data set.
_SAVE_SHARE = 0.05
_LONGEST_SEGMENT = 1 << 20


class Job:
  """A craft in progress: the slots, who waits, and what is finished."""

  def __init__(
    self, attack, logits_fn, key, images, y, index, slots, checkpoint
  ):
    self.images, self.y, self.index = images, y, index
    self.slots_asked = slots
    self.checkpoint = None if checkpoint is None else pathlib.Path(checkpoint)
    if self.checkpoint and self.checkpoint.is_dir():
      raise ValueError(
        f"checkpoint={str(checkpoint)!r} is a folder: name a file in it"
      )
    devices = _devices(logits_fn, images)
    self.num_devices = len(devices)
    self.mesh = Mesh(np.asarray(devices), (slots_lib.AXIS,))
    self.split = NamedSharding(self.mesh, PartitionSpec(slots_lib.AXIS))
    self.attack, self.logits_fn, self.key = _everywhere(
      (attack, logits_fn, key), self.mesh
    )
    # Sizes come from `slots` alone, so that data sets of any size share the
    # compiled programs.
    self.queue_size = 2 * slots
    least = min(slots, max(_SMALLEST, slots // _SMALLEST_SHARE))
    num_slots = slots
    while num_slots > least and len(images) <= num_slots // 2 * len(devices):
      num_slots = max(num_slots // 2, least)
    self.smallest = max(least, num_slots // _SHARE)
    self.limit = 8
    self.x_adv = np.array(images)
    self.steps = np.zeros(len(images), np.int32)
    self.finished = np.zeros(len(images), bool)
    self.saved_at, self.saving = time.monotonic(), 0.0
    self._place(num_slots)
    self.pending = self._deal(np.arange(len(images), dtype=np.int32))
    self.fingerprint = ""
    if self.checkpoint:
      self.fingerprint = fingerprint(attack, logits_fn, key, images, y, index)
    if self.checkpoint and self.checkpoint.exists():
      self._load(self.checkpoint)

  def _place(self, num_slots: int) -> None:
    y = jax.tree.map(lambda leaf: leaf[:1], self.y)
    rows = num_slots * self.num_devices
    empty = slots_lib.empty(self.attack, self.key, self.images[:1], y, rows)
    self.num_slots = num_slots
    self.slots = jax.device_put(empty, self.split)
    self.active = 0.0

  def _deal(self, index: np.ndarray) -> list[np.ndarray]:
    return [index[d :: self.num_devices] for d in range(self.num_devices)]

  def unfinished(self) -> bool:
    return not self.finished.all()

  def completed(self) -> float:
    """Examples finished, those under way by their share of the budget."""
    return float(self.finished.sum()) + self.active

  def advance(self) -> None:
    """One segment: about a second of steps on every device."""
    started = time.monotonic()
    queue, low_water = self._queue()
    self.slots, output = slots_lib.segment(
      self.attack,
      self.logits_fn,
      self.key,
      self.slots,
      queue,
      low_water,
      self.limit,
      mesh=self.mesh,
    )
    self._collect(jax.device_get(output))
    now = time.monotonic()
    if now - started < _SEGMENT_SECONDS / 2:
      self.limit = min(2 * self.limit, _LONGEST_SEGMENT)
    wait = max(_SAVE_SECONDS, self.saving / _SAVE_SHARE)
    if self.checkpoint and now - self.saved_at > wait:
      self.save()

  def _queue(self) -> tuple[slots_lib.Queue, np.ndarray]:
    index = np.zeros((self.num_devices, self.queue_size), np.int32)
    size = [min(len(rows), self.queue_size) for rows in self.pending]
    for device, rows in enumerate(self.pending):
      index[device, : size[device]] = rows[: size[device]]
    # A device that runs short of examples which the host still has stops at
    # once; at the end of its share, when the fewer slots hold its rows.
    drained = self.smallest if self.num_slots > self.smallest else 0
    low_water = [
      self.num_slots - 1 if len(rows) > n else drained
      for rows, n in zip(self.pending, size, strict=True)
    ]
    flat = index.reshape(-1)
    queue = slots_lib.Queue(
      self.images[flat],
      jax.tree.map(lambda leaf: leaf[flat], self.y),
      jnp.asarray(flat),
      jnp.asarray(self.index[flat]),
      jnp.asarray(size, jnp.int32),
    )
    return (
      jax.device_put(queue, self.split),
      np.asarray(low_water, np.int32),
    )

  def _collect(self, output: slots_lib.Output) -> None:
    capacity = self.queue_size + self.num_slots
    for device in range(self.num_devices):
      first = device * capacity
      rows = slice(first, first + output.size[device])
      index = output.example[rows]
      self.x_adv[index] = output.x_adv[rows]
      self.steps[index] = output.steps[rows]
      self.finished[index] = True
      self.pending[device] = self.pending[device][output.taken[device] :]
    index, steps = jax.device_get((self.slots.example, self.slots.steps))
    under_way = index >= 0
    self.active = float((steps[under_way] / self.attack.num_steps).sum())
    waiting = sum(map(len, self.pending))
    if not waiting:
      self._compact(np.flatnonzero(under_way))

  def _compact(self, rows: np.ndarray) -> None:
    """Moves the last rows into fewer slots, evenly over the devices."""
    fit = len(rows) <= self.smallest * self.num_devices
    if self.num_slots > self.smallest and fit and len(rows):
      self._move(rows, self.smallest)

  def _move(self, rows: np.ndarray, size: int) -> None:
    grid = np.full((size, self.num_devices), -1)
    grid.reshape(-1)[: len(rows)] = rows
    source = grid.T.reshape(-1)
    self.num_slots = size
    moved = slots_lib.rearranged(self.slots, source)
    self.slots = jax.device_put(moved, self.split)

  def save(self) -> None:
    """Writes all that is known, so that a killed call loses little."""
    if self.checkpoint is None:
      return
    started = time.monotonic()
    owner = np.repeat(np.arange(self.num_devices), list(map(len, self.pending)))
    arrays = {
      "fingerprint": np.asarray(self.fingerprint),
      "x_adv": self.x_adv,
      "steps": self.steps,
      "finished": self.finished,
      "pending": np.concatenate(self.pending),
      "owner": owner,
      "num_devices": np.asarray(self.num_devices),
      "num_slots": np.asarray(self.num_slots),
    }
    for i, leaf in enumerate(jax.tree.leaves(self.slots)):
      arrays[f"slots_{i}"] = np.asarray(_raw(leaf))
    save_npz(self.checkpoint, arrays)
    self.saved_at = time.monotonic()
    self.saving = self.saved_at - started

  def _load(self, checkpoint: pathlib.Path) -> None:
    saved = load_npz(checkpoint)
    if "fingerprint" not in saved:
      raise Damaged(f"{checkpoint} is no checkpoint: name another file")
    if different := compared(str(saved["fingerprint"]), self.fingerprint):
      raise ValueError(
        f"checkpoint={str(checkpoint)!r} belongs to another {different}: "
        "delete it or name another file"
      )
    for name in ("x_adv", "steps", "finished"):
      setattr(self, name, saved[name])
    num_devices, num_slots = int(saved["num_devices"]), int(saved["num_slots"])
    pending, owner = saved["pending"], saved["owner"]
    leaves, tree = jax.tree.flatten(self.slots)
    self.slots = jax.tree.unflatten(
      tree,
      [_cooked(saved[f"slots_{i}"], leaf) for i, leaf in enumerate(leaves)],
    )
    if num_devices == self.num_devices:
      self.pending = [pending[owner == d] for d in range(num_devices)]
      self.num_slots = num_slots
      self.slots = jax.device_put(self.slots, self.split)
    else:
      self.pending = self._deal(np.sort(pending))
      rows = np.flatnonzero(np.asarray(self.slots.example) >= 0)
      self._move(rows, max(self.num_slots, -(-len(rows) // self.num_devices)))

  def forget(self) -> None:
    """Removes the checkpoint of a finished job."""
    if self.checkpoint:
      self.checkpoint.unlink(missing_ok=True)


def _devices(logits_fn: types.LogitsFn, images: np.ndarray) -> list[Any]:
  """All local devices; one for a model that calls Python.

  Callbacks of several devices of one process wait for each other's arrays, and
  may do so for ever.
  """
  devices = jax.local_devices()
  return devices[:1] if programs.calls_back(logits_fn, images) else devices


def _everywhere(tree: types.PyTree, mesh: Mesh) -> types.PyTree:
  """The arrays on every device, wherever they were; numbers stay numbers."""
  whole = NamedSharding(mesh, PartitionSpec())

  def copied(leaf):
    return jax.device_put(leaf, whole) if isinstance(leaf, jax.Array) else leaf

  return jax.tree.map(copied, tree)


def _raw(leaf: Any) -> Any:
  if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
    return jax.random.key_data(leaf)
  return leaf


def _cooked(raw: np.ndarray, like: Any) -> Any:
  if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
    return jax.random.wrap_key_data(
      jnp.asarray(raw), impl=jax.random.key_impl(like)
    )
  return jnp.asarray(raw)
