"""What a model does, read off its program without running it."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxadv import types

Array = jax.Array

_CALLBACKS = frozenset(
  ("pure_callback", "io_callback", "debug_callback", "debug_print")
)


def of_model(logits_fn: types.LogitsFn, x: np.ndarray) -> Any:
  """The jaxpr of one question, about the first row of `x`."""
  return jax.make_jaxpr(ask)(logits_fn, *question(x))


def ask(logits_fn: types.LogitsFn, keys: Array, x: Array) -> types.PyTree:
  """The question as a function of its own, so that weights are arguments."""
  return logits_fn(keys, x)


def question(x: np.ndarray) -> tuple[Array, Array]:
  """A key and the first row of `x`."""
  return jax.random.split(jax.random.key(0), 1), jnp.asarray(x[:1])


def operations(program: Any) -> Iterator[str]:
  """The names of all operations of a jaxpr and of those inside it."""
  for equation in getattr(program, "jaxpr", program).eqns:
    yield equation.primitive.name
    for value in equation.params.values():
      for part in value if isinstance(value, tuple | list) else (value,):
        if hasattr(getattr(part, "jaxpr", part), "eqns"):
          yield from operations(part)


def calls_back(logits_fn: types.LogitsFn, x: np.ndarray) -> bool:
  """Whether the model leaves the device for Python."""
  return leaves_device(of_model(logits_fn, x))


def leaves_device(program: Any) -> bool:
  """Whether a jaxpr calls Python."""
  return not _CALLBACKS.isdisjoint(operations(program))
