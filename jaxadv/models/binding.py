"""How weights enter: a bound model is a pytree whose leaves are its weights."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn

from jaxadv import types


@dataclasses.dataclass(frozen=True)
class _Method:
  """A method of a flax module, equal to that of every equal module.

  Python compares bound methods by the identity of their owner.
  """

  function: Callable
  module: nn.Module

  def __call__(self, *args: Any) -> Any:
    return self.function(self.module, *args)


@dataclasses.dataclass(frozen=True)
class _WithoutKeys:
  """Gives a deterministic model the keys argument of a `LogitsFn`."""

  apply_fn: Callable

  def __call__(self, variables: Any, keys: jax.Array, x: jax.Array) -> Any:
    del keys
    return self.apply_fn(variables, x)


def _comparable(apply_fn: Callable) -> Callable:
  owner = getattr(apply_fn, "__self__", None)
  function = getattr(apply_fn, "__func__", None)
  if function is None or not isinstance(owner, nn.Module):
    return apply_fn
  try:
    hash(owner)
  except TypeError:  # A field is a list, a dictionary or an array.
    return apply_fn
  return _Method(function, owner)


def bind(apply_fn: Callable, variables: types.PyTree) -> types.LogitsFn:
  """Binds weights to a deterministic model.

  The result is a `jax.tree_util.Partial`: a pytree whose leaves are the
  weights. Pass it to jitted functions as an argument and one compiled program
  serves every set of weights; closed over, they would be baked in as constants.

  A program is found again if `apply_fn` is equal: the same function, or
  `apply` of an equal flax module (`CNN().apply` twice). A lambda or a
  `functools.partial` made anew is not: make it once, at module level.

  Args:
    apply_fn: `(variables, x[B, ...]) -> logits[B, C]`, without dropout and with
      frozen batch statistics; for the networks here `module.apply`.
    variables: The weights (and batch statistics) as `apply_fn` takes them.

  Returns:
    `(keys[B], x[B, ...]) -> logits[B, C]`; the keys are ignored.
  """
  return jax.tree_util.Partial(_WithoutKeys(_comparable(apply_fn)), variables)


def bind_stochastic(
  apply_fn: Callable, variables: types.PyTree
) -> types.LogitsFn:
  """Binds weights to a model that draws random numbers; see `bind`.

  Args:
    apply_fn: `(variables, keys[B], x[B, ...]) -> logits[B, C]`, with one key
      per row, so that a row does not depend on the rest of the batch.
    variables: The weights as `apply_fn` takes them.

  Returns:
    `(keys[B], x[B, ...]) -> logits[B, C]`.
  """
  return jax.tree_util.Partial(_comparable(apply_fn), variables)
