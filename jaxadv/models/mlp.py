"""Fully connected networks."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn


class MLP(nn.Module):
  """Dense layers on flattened inputs; returns float32 logits [B, C].

  Attributes:
    features: Widths of the hidden layers; a tuple, so that equal networks hash
      alike. No hidden layer makes a linear classifier.
    num_classes: Number of classes.
    activation: Nonlinearity after each hidden layer.
    dtype: Type of the computation; weights stay float32.
  """

  features: Sequence[int] = (256, 256)
  num_classes: int = 10
  activation: Callable[[jax.Array], jax.Array] = nn.relu
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Logits of `x` [B, ...]; `train` changes nothing here."""
    del train
    x = x.reshape(x.shape[0], -1).astype(self.dtype)
    for width in self.features:
      x = self.activation(nn.Dense(width, dtype=self.dtype)(x))
    x = nn.Dense(self.num_classes, dtype=self.dtype)(x)
    return x.astype(jnp.float32)


def seed_network(
  activation: Callable[[jax.Array], jax.Array] = nn.sigmoid,
) -> MLP:
  """The small classic for MNIST: 784 inputs, 20 hidden units, 10 logits.

  Args:
    activation: Of the hidden layer; the original's are sigmoid units.
  """
  return MLP(features=(20,), activation=activation)
