"""Convolutional networks for MNIST, as the papers on robustness use them.

All take `x` [B, H, W, C] in [0, 1] and return float32 logits [B, num_classes].
Fields they share: `num_classes`; `activation`; `dtype`, the type of the
computation (weights stay float32); `conv_general_dilated`, the convolution.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxadv.models import convolution


def _flat(x: jax.Array) -> jax.Array:
  return x.reshape(x.shape[0], -1)


class MadryCNN(nn.Module):
  """Two 5 x 5 convolutions with max-pooling and 1,024 hidden units.

  3,274,634 weights on MNIST. Weights start as there: truncated normal with
  standard deviation 0.1, biases 0.1.

  Reference: Madry et al., "Towards deep learning models resistant to
  adversarial attacks" (2018), https://arxiv.org/abs/1706.06083, and its
  mnist_challenge code.
  """

  num_classes: int = 10
  activation: Callable[[jax.Array], jax.Array] = nn.relu
  dtype: Any = jnp.float32
  conv_general_dilated: Callable = convolution.conv_general_dilated

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Logits of `x`; `train` changes nothing here."""
    del train
    start = {
      "kernel_init": nn.initializers.truncated_normal(0.1),
      "bias_init": nn.initializers.constant(0.1),
    }
    dense = functools.partial(nn.Dense, dtype=self.dtype, **start)
    x = x.astype(self.dtype)
    for features in (32, 64):
      x = nn.Conv(
        features,
        (5, 5),
        dtype=self.dtype,
        conv_general_dilated=self.conv_general_dilated,
        **start,
      )(x)
      x = convolution.max_pool_2x2(self.activation(x))
    x = self.activation(dense(1024)(_flat(x)))
    return dense(self.num_classes)(x).astype(jnp.float32)


class SmallCNN(nn.Module):
  """Four 3 x 3 convolutions with max-pooling and two layers of 200 units.

  312,202 weights on MNIST; inputs of at least 16 x 16. Weights start as there:
  He normal (fan in) for convolutions, zeros for the last layer, which makes
  every gradient of the untrained network with respect to its input zero.
  `train=True` drops half of the first 200 units and needs
  `rngs={"dropout": key}`.

  Reference: Zhang et al., "Theoretically principled trade-off between
  robustness and accuracy" (TRADES, 2019), https://arxiv.org/abs/1901.08573,
  and its code.
  """

  num_classes: int = 10
  activation: Callable[[jax.Array], jax.Array] = nn.relu
  dtype: Any = jnp.float32
  conv_general_dilated: Callable = convolution.conv_general_dilated
  dropout_rate: float = 0.5

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Logits of `x`, with dropout if `train`."""
    he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
    dense = functools.partial(nn.Dense, dtype=self.dtype)
    x = x.astype(self.dtype)
    for features in (32, 64):
      for _ in range(2):
        x = nn.Conv(
          features,
          (3, 3),
          padding="VALID",
          dtype=self.dtype,
          kernel_init=he_normal,
          conv_general_dilated=self.conv_general_dilated,
        )(x)
        x = self.activation(x)
      x = convolution.max_pool_2x2(x)
    x = self.activation(dense(200)(_flat(x)))
    x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
    x = self.activation(dense(200)(x))
    x = dense(self.num_classes, kernel_init=nn.initializers.zeros)(x)
    return x.astype(jnp.float32)


class StridedCNN(nn.Module):
  """Two 4 x 4 convolutions of stride 2 and 100 hidden units, no pooling.

  166,406 weights on MNIST.

  Reference: Wong, Rice and Kolter, "Fast is better than free" (2020),
  https://arxiv.org/abs/2001.03994, and its code.
  """

  num_classes: int = 10
  activation: Callable[[jax.Array], jax.Array] = nn.relu
  dtype: Any = jnp.float32
  conv_general_dilated: Callable = convolution.conv_general_dilated

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Logits of `x`; `train` changes nothing here."""
    del train
    x = x.astype(self.dtype)
    for features in (16, 32):
      x = nn.Conv(
        features,
        (4, 4),
        strides=2,
        padding=1,
        dtype=self.dtype,
        conv_general_dilated=self.conv_general_dilated,
      )(x)
      x = self.activation(x)
    x = self.activation(nn.Dense(100, dtype=self.dtype)(_flat(x)))
    x = nn.Dense(self.num_classes, dtype=self.dtype)(x)
    return x.astype(jnp.float32)
