"""Attacks driven under a budget of passes, by what they ask the model.

What counts for an example is the nearest misclassified point that the model was
ever asked about, whatever the attack makes of it. A forward pass costs 1 and so
does a backward pass; a step that would exceed the budget is not taken.

The model is wrapped, so that every question reaches a `Recorder` on the host,
and every row of a batch stays where it is, which says whose question it was.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxadv import types
from jaxadv.engine import batch

Array = jax.Array
Distance = Callable[[np.ndarray], np.ndarray]

# By norm, the sizes [N] of perturbations [N, D]. L0 counts every coordinate
# that changed by more than rounding does.
DISTANCES: dict[str, Distance] = {
  "linf": lambda delta: np.abs(delta).max(axis=1, initial=0.0),
  "l2": lambda delta: np.sqrt(np.square(delta).sum(axis=1)),
  "l1": lambda delta: np.abs(delta).sum(axis=1),
  "l0": lambda delta: (np.abs(delta) > 1e-6).sum(axis=1).astype(np.float64),
}


class Found(NamedTuple):
  """Per example: the least distance asked about [N], and the passes [N]."""

  distance: np.ndarray
  passes: np.ndarray


class Recorder:
  """Hears every question about the rows of one batch."""

  def __init__(self):
    self.x = np.zeros((0, 0))
    self.label = np.zeros(0, int)
    self.size: Distance = DISTANCES["l2"]
    self.best = np.zeros(0)
    self.rows = np.zeros(0, bool)

  def start(self, x: np.ndarray, label: np.ndarray, norm: str) -> None:
    """Forgets what it heard; distances are to `x` from now on."""
    self.x = np.asarray(x, np.float64).reshape(len(x), -1)
    self.label = np.asarray(label)
    self.size = DISTANCES[norm]
    self.best = np.full(len(x), np.inf)
    self.rows = np.ones(len(x), bool)

  def hear(self, x: Any, logits: Any) -> None:
    """Takes in a question; only those of `rows` count."""
    x = np.asarray(x, np.float64).reshape(self.x.shape)
    wrong = np.asarray(logits).argmax(axis=1) != self.label
    inside = ((x >= 0) & (x <= 1)).all(axis=1)
    distance = self.size(x - self.x)
    nearer = self.rows & wrong & inside & (distance < self.best)
    self.best = np.where(nearer, distance, self.best)


# One for the process: a program is compiled for its recorder.
_RECORDER = Recorder()


def best_found(
  attack: types.Attack,
  logits_fn: types.LogitsFn,
  key: Array,
  x: np.ndarray,
  label: np.ndarray,
  *,
  norm: str,
  budget: int,
) -> Found:
  """Runs an attack within the budget and keeps the nearest of its questions.

  Args:
    attack: The kernel; its steps cost what it says of itself.
    logits_fn: The model.
    key: A PRNG key.
    x: Inputs [N, ...] in [0, 1], attacked as one batch.
    label: Their labels [N].
    norm: A key of `DISTANCES`.
    budget: Forward and backward passes per example.
  """
  _RECORDER.start(x, label, norm)
  cost = int(attack.forwards) + int(attack.backwards)
  keys = batch.row_keys(key, jnp.arange(len(x)))
  state = _start(attack, keys, jnp.asarray(x), jnp.asarray(label))
  steps = np.zeros(len(x), int)
  asked = _Asked(_RECORDER.hear)
  model = jax.tree_util.Partial(asked, logits_fn)
  for _ in range(int(min(attack.num_steps, budget // cost))):
    rows = ~np.asarray(state.done)
    if not rows.any():
      break
    _RECORDER.rows = rows
    state = _advance(attack, model, rows, state)
    jax.block_until_ready(state)
    jax.effects_barrier()
    steps += rows
  return Found(_RECORDER.best.copy(), cost * steps)


@jax.jit
def _start(attack, keys: Array, x: Array, label: Array) -> Any:
  return attack.init(keys, x, label)


@jax.jit
def _advance(attack, logits_fn, rows: Array, state: Any) -> Any:
  return batch.masked_step(attack, logits_fn, rows, state)


class _Asked:
  """Passes a question on to the model and tells `hear` of it."""

  def __init__(self, hear: Callable[[Any, Any], None]):
    self.hear = hear

  def __eq__(self, other: object) -> bool:
    return isinstance(other, _Asked) and self.hear == other.hear

  def __hash__(self) -> int:
    return hash(self.hear)

  def __call__(self, logits_fn: types.LogitsFn, keys: Array, x: Array) -> Array:
    logits = logits_fn(keys, x)
    _tell(self.hear, jax.lax.stop_gradient((x, logits)))
    return logits


def _tell(hear: Callable[[Any, Any], None], question: tuple) -> None:
  @jax.custom_batching.custom_vmap
  def tell(x: Array, logits: Array) -> Array:
    jax.debug.callback(hear, x, logits)
    return jnp.zeros(())

  @tell.def_vmap
  def _(size, batched, x, logits):
    del batched
    # A row each, as `radius_search` asks: [N, 1, ...].
    flat = (x.reshape(size, *x.shape[2:]), logits.reshape(size, -1))
    return tell(*flat), False

  tell(*question)
