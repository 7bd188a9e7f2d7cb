"""The model asked again, afresh: nobody believes an attack about itself."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxadv import oracles, types

Array = jax.Array

# Sets the judge's draws of a randomised model apart from the attack's own.
_JUDGE = 0x6A756467


def outputs(
  logits_fn: types.LogitsFn,
  key: Array,
  x: np.ndarray,
  *,
  batch_size: int,
  index: np.ndarray | None = None,
) -> types.PyTree:
  """The model's outputs for a data set, as NumPy arrays [N, ...].

  Batches are padded to `batch_size`, so one compiled program serves all. The
  key of a row is made of its `index` [N], by default its place.
  """
  if index is None:
    index = np.arange(len(x))
  answers = [
    _outputs(logits_fn, key, x[rows], index[rows].astype(np.int32))
    for rows in _batches(len(x), batch_size)
  ]
  joined = jax.tree.map(lambda *parts: np.concatenate(parts), *answers)
  return jax.tree.map(lambda leaf: leaf[: len(x)], joined)


def success(
  logits_fn: types.LogitsFn,
  key: Array,
  x: np.ndarray,
  y: types.PyTree,
  criterion: types.Criterion,
  *,
  batch_size: int,
  index: np.ndarray | None = None,
) -> np.ndarray:
  """Whether the criterion holds at each input of a data set [N]."""
  answers = outputs(logits_fn, key, x, batch_size=batch_size, index=index)
  return np.asarray(_satisfied(types.hashable(criterion), answers, y))


@jax.jit
def _outputs(logits_fn, key, x, index) -> types.PyTree:
  keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
  keys = jax.vmap(jax.random.fold_in, (0, None))(keys, _JUDGE)
  return logits_fn(keys, x)


@jax.jit
def _satisfied(criterion, answers, y) -> Array:
  return oracles.satisfied(criterion, jax.tree.map(jnp.asarray, answers), y)


def _batches(num_rows: int, batch_size: int):
  for start in range(0, num_rows, batch_size):
    yield np.minimum(np.arange(start, start + batch_size), num_rows - 1)
