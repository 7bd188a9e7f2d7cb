"""The device side of `craft`: slots that are refilled as rows finish.

Works as serving systems batch requests: a finished row is written out and its
slot takes the next example of the queue, without leaving the device.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from jaxadv import oracles, types
from jaxadv.engine import batch

Array = jax.Array
AXIS = "slots"


class Slots(NamedTuple):
  """The rows in progress; `example` is -1 where a slot is empty."""

  state: Any
  steps: Array  # [S]
  example: Array  # [S], its place in the data set


class Queue(NamedTuple):
  """Examples waiting for a slot: the first `size` rows of [Q, ...]."""

  x: Array
  y: types.PyTree
  example: Array
  number: Array  # What their keys are made of.
  size: Array  # [1]


class Output(NamedTuple):
  """Finished rows: the first `size` of [Q + S, ...]; `taken` of the queue."""

  x_adv: Array
  steps: Array
  example: Array
  size: Array  # [1]
  taken: Array  # [1]


def empty(attack, key, x: Array, y: types.PyTree, num_slots: int) -> Slots:
  """Slots without rows, shaped for examples like `x[0]`, `y[0]`.

  Zeros, so that nothing compiles: the first segment fills the states.
  """

  def filled(key, x, y):
    first = jnp.zeros(num_slots, jnp.int32)
    x, y = jax.tree.map(lambda leaf: jnp.asarray(leaf)[first], (x, y))
    state = attack.init(batch.row_keys(key, first), x, y)
    return Slots(state, first, first)

  like = jax.eval_shape(filled, key, x, y)
  slots = jax.tree.map(functools.partial(_zeros, key), like)
  return slots._replace(example=slots.example - 1)


def _zeros(key: Array, like: jax.ShapeDtypeStruct) -> Any:
  if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
    raw = jax.eval_shape(jax.random.key_data, like)
    return jax.random.wrap_key_data(
      jnp.zeros(raw.shape, raw.dtype), impl=jax.random.key_impl(key)
    )
  return np.zeros(like.shape, like.dtype)


@jax.jit
def rearranged(slots: Slots, source: Array) -> Slots:
  """The rows `source` of the slots, empty where it is negative."""
  moved = jax.tree.map(lambda leaf: leaf[jnp.maximum(source, 0)], slots)
  return moved._replace(example=jnp.where(source < 0, -1, moved.example))


@functools.partial(jax.jit, static_argnames="mesh", donate_argnames="slots")
def segment(
  attack: types.Attack,
  logits_fn: types.LogitsFn,
  key: Array,
  slots: Slots,
  queue: Queue,
  low_water: Array,
  limit: Array,
  *,
  mesh: jax.sharding.Mesh,
) -> tuple[Slots, Output]:
  """Steps the slots of every device, with no word between devices.

  A device stops when no more than `low_water` of its slots are filled, or
  after `limit` steps. Where it stops changes nothing of any row.
  """
  split, whole = PartitionSpec(AXIS), PartitionSpec()
  return jax.shard_map(
    _segment,
    mesh=mesh,
    in_specs=(whole, whole, whole, split, split, split, whole),
    out_specs=(split, split),
    check_vma=False,
  )(attack, logits_fn, key, slots, queue, low_water, limit)


def _segment(attack, logits_fn, key, slots, queue, low_water, limit):
  capacity = len(queue.example) + len(slots.example)
  output = Output(
    x_adv=jnp.zeros((capacity, *queue.x.shape[1:]), queue.x.dtype),
    steps=jnp.zeros(capacity, jnp.int32),
    example=jnp.full(capacity, -1, jnp.int32),
    size=jnp.zeros(1, jnp.int32),
    taken=jnp.zeros(1, jnp.int32),
  )

  def unfinished(carry):
    step, slots, _ = carry
    return (step < limit) & (jnp.sum(slots.example >= 0) > low_water[0])

  def advance(carry):
    step, slots, output = carry
    active = slots.example >= 0
    state = batch.masked_step(attack, logits_fn, active, slots.state)
    steps = slots.steps + active
    finished = active & (state.done | (steps >= attack.num_steps))
    slots = Slots(state, steps, slots.example)
    slots, output = _flush(finished, slots, output)
    return step + 1, *_refill(attack, key, slots, queue, output)

  filled = _refill(attack, key, slots, queue, output)
  _, slots, output = jax.lax.while_loop(unfinished, advance, (0, *filled))
  return slots, output


def _refill(attack, key, slots: Slots, queue: Queue, output: Output):
  free = slots.example < 0
  source = output.taken[0] + jnp.cumsum(free) - 1
  filled = free & (source < queue.size[0])

  def fill():
    rows = jnp.clip(source, 0, len(queue.example) - 1)
    x, y, example, number = jax.tree.map(
      lambda leaf: leaf[rows], (queue.x, queue.y, queue.example, queue.number)
    )
    state = attack.init(batch.row_keys(key, number), x, y)
    example = jnp.where(filled, example, -1)
    fresh = Slots(state, jnp.zeros_like(slots.steps), example)
    # Slots that stay empty take part in every step, so their states have to be
    # possible ones.
    return oracles.choose(free, fresh, slots)

  slots = jax.lax.cond(jnp.any(filled), fill, lambda: slots)
  return slots, output._replace(
    taken=output.taken + jnp.sum(filled, dtype=jnp.int32)
  )


def _flush(finished: Array, slots: Slots, output: Output):
  place = output.size[0] + jnp.cumsum(finished) - 1
  place = jnp.where(finished, place, len(output.example))

  def write():
    rows = (output.x_adv, output.steps, output.example)
    new = (slots.state.x_adv, slots.steps, slots.example)
    return jax.tree.map(lambda o, n: o.at[place].set(n, mode="drop"), rows, new)

  x_adv, steps, example = jax.lax.cond(
    jnp.any(finished),
    write,
    lambda: (output.x_adv, output.steps, output.example),
  )
  output = output._replace(
    x_adv=x_adv,
    steps=steps,
    example=example,
    size=output.size + jnp.sum(finished, dtype=jnp.int32),
  )
  return slots._replace(example=jnp.where(finished, -1, slots.example)), output
