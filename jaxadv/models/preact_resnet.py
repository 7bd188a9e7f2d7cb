"""Residual networks with pre-activation, for 32 x 32 images."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxadv.models import convolution, residual


class PreActResNet(nn.Module):
  """PreActResNet-18 by default; returns float32 logits [B, num_classes].

  Inputs `x` [B, H, W, C] in [0, 1] are normalised inside. A last batch
  normalisation and activation precede the pooling, as He et al. describe and
  as the code for fast adversarial training has it (11,172,170 weights on
  CIFAR-10); a popular PyTorch version omits them (11,171,146).

  `train=True` normalises by the batch: apply with `mutable=["batch_stats"]`.

  Attributes:
    num_classes: Number of classes.
    stage_sizes: Blocks per stage; (2, 2, 2, 2) is the 18-layer network.
    width: Channels of the first stage; each later one doubles them.
    activation: The nonlinearity.
    mean: Subtracted per channel; default CIFAR-10's training set.
    std: Divided by per channel; default CIFAR-10's training set.
    dtype: Type of the computation; weights and logits stay float32.
    conv_general_dilated: The convolution.

  References: He et al., "Identity mappings in deep residual networks" (2016),
  https://arxiv.org/abs/1603.05027; Wong, Rice and Kolter, "Fast is better than
  free" (2020), https://arxiv.org/abs/2001.03994, source of mean and std.
  """

  num_classes: int = 10
  stage_sizes: Sequence[int] = (2, 2, 2, 2)
  width: int = 64
  activation: Callable[[jax.Array], jax.Array] = nn.relu
  mean: Sequence[float] = (0.4914, 0.4822, 0.4465)
  std: Sequence[float] = (0.2471, 0.2435, 0.2616)
  dtype: Any = jnp.float32
  conv_general_dilated: Callable = convolution.conv_general_dilated

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Logits of `x`, by batch statistics if `train`, else by running ones."""
    conv, norm = residual.layers(self.dtype, self.conv_general_dilated, train)
    x = residual.normalise(x, self.mean, self.std).astype(self.dtype)
    x = conv(self.width, (3, 3), padding=1)(x)
    for stage, num_blocks in enumerate(self.stage_sizes):
      for block in range(num_blocks):
        first = stage > 0 and block == 0
        x = residual.Block(
          self.width * 2**stage,
          strides=2 if first else 1,
          project=first,
          activation=self.activation,
          conv=conv,
          norm=norm,
        )(x)
    x = self.activation(norm()(x)).mean(axis=(1, 2))
    x = nn.Dense(self.num_classes, dtype=self.dtype)(x)
    return x.astype(jnp.float32)
