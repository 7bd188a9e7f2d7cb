"""Wide residual networks, for 32 x 32 images."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxadv.models import convolution, residual


class WideResNet(nn.Module):
  """WRN-34-10 by default; returns float32 logits [B, num_classes].

  Inputs `x` [B, H, W, C] in [0, 1] are normalised inside. 46,160,474 weights on
  CIFAR-10; `depth=28` has 36,479,194. The TRADES code also registers a group of
  blocks that it never calls, so a count of its weights comes out higher.

  `train=True` normalises by the batch: apply with `mutable=["batch_stats"]`.

  Attributes:
    num_classes: Number of classes.
    depth: Number of layers, 6 n + 4 for n blocks in each of three stages.
    widen_factor: Channels are 16, 32 and 64 times this.
    activation: The nonlinearity.
    mean: Subtracted per channel; default 0, as TRADES does not normalise.
    std: Divided by per channel; default 1, as TRADES does not normalise.
    dtype: Type of the computation; weights and logits stay float32.
    conv_general_dilated: The convolution.

  References: Zagoruyko and Komodakis, "Wide residual networks" (2016),
  https://arxiv.org/abs/1605.07146; Zhang et al., "Theoretically principled
  trade-off between robustness and accuracy" (TRADES, 2019),
  https://arxiv.org/abs/1901.08573, source of the default size.
  """

  num_classes: int = 10
  depth: int = 34
  widen_factor: int = 10
  activation: Callable[[jax.Array], jax.Array] = nn.relu
  mean: Sequence[float] = (0.0, 0.0, 0.0)
  std: Sequence[float] = (1.0, 1.0, 1.0)
  dtype: Any = jnp.float32
  conv_general_dilated: Callable = convolution.conv_general_dilated

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Logits of `x`, by batch statistics if `train`, else by running ones.

    Raises:
      ValueError: If `depth` is not 6 n + 4.
    """
    num_blocks, rest = divmod(self.depth - 4, 6)
    if rest or num_blocks < 1:
      raise ValueError(
        f"depth must be 10, 16, 22, ... (6 n + 4), got {self.depth}."
      )
    conv, norm = residual.layers(self.dtype, self.conv_general_dilated, train)
    x = residual.normalise(x, self.mean, self.std).astype(self.dtype)
    x = conv(16, (3, 3), padding=1)(x)
    for stage in range(3):
      features = 16 * self.widen_factor * 2**stage
      for block in range(num_blocks):
        x = residual.Block(
          features,
          strides=2 if stage > 0 and block == 0 else 1,
          project=x.shape[-1] != features,
          activation=self.activation,
          conv=conv,
          norm=norm,
        )(x)
    x = self.activation(norm()(x)).mean(axis=(1, 2))
    x = nn.Dense(self.num_classes, dtype=self.dtype)(x)
    return x.astype(jnp.float32)
