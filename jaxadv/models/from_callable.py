"""Victims behind a Python function, for attacks that only ask for outputs."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxadv import types


@dataclasses.dataclass(frozen=True)
class _Query:
  """Calls `fn` on the host, once for all the batches that vmap stacked."""

  fn: Callable[[np.ndarray], np.ndarray]
  num_classes: int

  def __call__(self, keys: jax.Array, x: jax.Array) -> jax.Array:
    del keys
    shape = x.shape[1:]
    return jax.pure_callback(
      lambda images: self.ask(np.asarray(images), shape),
      jax.ShapeDtypeStruct((x.shape[0], self.num_classes), jnp.float32),
      x.astype(jnp.float32),
      vmap_method="expand_dims",
    )

  def ask(self, images: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Scores of `images` [..., *shape] as [..., num_classes]."""
    rows = images.shape[: images.ndim - len(shape)]
    scores = np.asarray(self.fn(images.reshape((-1, *shape))))
    expected = (math.prod(rows), self.num_classes)
    if scores.shape != expected:
      raise ValueError(
        f"from_callable: fn returned an array of shape {scores.shape} for"
        f" {expected[0]} inputs, not {expected}; return one row of"
        " num_classes scores per input, or correct num_classes."
      )
    return scores.astype(np.float32).reshape((*rows, self.num_classes))


def from_callable(
  fn: Callable[[np.ndarray], np.ndarray], num_classes: int
) -> types.LogitsFn:
  """Makes a model of a Python function: scikit-learn, PyTorch, a web service.

  Every query-only attack works on the result unchanged, also inside jit, loops
  and vmap (which costs one call of `fn` for the whole stack). It has no
  gradient: JAX raises a ValueError when asked for one.

  Args:
    fn: `float32 [B, ...] -> [B, num_classes]`, NumPy to NumPy. Scores may be
      logits or log-probabilities; with plain probabilities losses on logits
      are flat. It must be a pure function, row by row (JAX may call it again or
      not at all), and must not call JAX. Pass the same object for the same
      victim: two lambdas compile two programs.
    num_classes: Number of columns that `fn` returns.

  Returns:
    `(keys[B], x[B, ...]) -> logits[B, num_classes]`, a pytree without leaves.

  Raises:
    ValueError: If `num_classes` is not positive. When called, an error of the
      JAX runtime that carries the text of `fn`'s own, or that says which shape
      was wrong.
  """
  if num_classes < 1:
    raise ValueError(f"num_classes must be at least 1, got {num_classes}.")
  return jax.tree_util.Partial(_Query(fn, num_classes))
