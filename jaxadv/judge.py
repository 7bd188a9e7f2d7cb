"""Results judged afresh: nobody believes an attack about itself.

The model is asked again, with multiplications in full float32 whatever the
caller's precision; ball and bounds are checked here.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxadv import oracles, types

Array = jax.Array

# What adding a perturbation to an input and taking it off again may cost: a
# share of the radius, and units in the last place of the input.
_RELATIVE, _ULPS = 1e-5, 8
# Rows that are checked at once, so that no data set has to fit on a device.
_ROWS = 256

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
  with jax.default_matmul_precision("highest"):
    answers = [
      jax.device_get(
        _outputs(logits_fn, key, x[rows], index[rows].astype(np.int32))
      )
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


def inside(
  ball: types.Ball | None,
  x: np.ndarray,
  x_adv: np.ndarray,
  *,
  bounds: tuple[types.Scalar, types.Scalar] = (0.0, 1.0),
) -> np.ndarray:
  """Whether each result is finite, in the ball and in the bounds [N].

  The radius may be exceeded by rounding: by 1e-5 of itself and by 8 units in
  the last place of the largest value that `x`, `x_adv` or a finite bound has
  (1e-6 for float32 images in [0, 1]). The
  bounds, as numbers of the type of `x_adv`, may not. Without a ball only the
  bounds count.
  """
  x, x_adv = np.asarray(x), np.asarray(x_adv)
  if x.shape != x_adv.shape:
    raise ValueError(
      f"x_adv must have the shape of x, got {x_adv.shape} and {x.shape}"
    )
  if len(x) == 0:
    return np.zeros(0, bool)
  found = [
    np.asarray(_inside(ball, x[rows], x_adv[rows], bounds))
    for rows in _batches(len(x), min(_ROWS, len(x)))
  ]
  return np.concatenate(found)[: len(x)]


@jax.jit
def _inside(ball, x, x_adv, bounds) -> Array:
  axes = tuple(range(1, x.ndim))
  low, high = (jnp.asarray(bound, x_adv.dtype) for bound in bounds)
  in_bounds = jnp.all((x_adv >= low) & (x_adv <= high), axis=axes)
  finite = jnp.all(jnp.isfinite(x_adv), axis=axes)
  if ball is None:
    return in_bounds & finite
  values = [jnp.max(jnp.abs(each), axis=axes) for each in (x, x_adv)]
  ends = [jnp.where(jnp.isfinite(b), jnp.abs(b), 0.0) for b in (low, high)]
  largest = functools.reduce(jnp.maximum, values + ends)
  rounding = _ULPS * jnp.finfo(x.dtype).eps * largest
  norms = jax.vmap(ball.norm)(x_adv - x)
  in_ball = norms <= ball.eps * (1 + _RELATIVE) + rounding
  return in_ball & in_bounds & finite


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
