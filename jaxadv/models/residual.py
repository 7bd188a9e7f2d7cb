"""What the residual networks share: layers, block and normalised inputs."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

# He normal over the outgoing connections, as the residual networks' papers.
he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def normalise(
  x: jax.Array, mean: Sequence[float], std: Sequence[float]
) -> jax.Array:
  """`(x - mean) / std` per channel of `x` [B, H, W, C].

  Raises:
    ValueError: If there is not one mean and one deviation per channel.
  """
  if not len(mean) == len(std) == x.shape[-1]:
    raise ValueError(
      f"mean {tuple(mean)} and std {tuple(std)} need one number for each of"
      f" the {x.shape[-1]} channels of x {x.shape}."
    )
  shape = (1,) * (x.ndim - 1) + (-1,)
  return (x - jnp.reshape(jnp.asarray(mean, x.dtype), shape)) / jnp.reshape(
    jnp.asarray(std, x.dtype), shape
  )


class Block(nn.Module):
  """Two pre-activated 3 x 3 convolutions beside a shortcut.

  Where width or resolution change, the shortcut is a 1 x 1 convolution of the
  activated input.

  Attributes:
    features: Width of the output.
    strides: Stride of the first convolution and of the shortcut.
    project: Whether the shortcut is a convolution.
    activation: The nonlinearity.
    conv: Builds a convolution without bias from its width and kernel size.
    norm: Builds a batch normalisation.
  """

  features: int
  strides: int
  project: bool
  activation: Callable[[jax.Array], jax.Array]
  conv: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Output [B, H / strides, W / strides, features]."""
    active = self.activation(self.norm()(x))
    y = self.conv(self.features, (3, 3), strides=self.strides, padding=1)(
      active
    )
    y = self.activation(self.norm()(y))
    y = self.conv(self.features, (3, 3), padding=1)(y)
    if self.project:
      x = self.conv(self.features, (1, 1), strides=self.strides, padding=0)(
        active
      )
    return x + y


def layers(
  dtype: Any, conv_general_dilated: Callable, train: bool
) -> tuple[Callable[..., nn.Module], Callable[..., nn.Module]]:
  """Builders of convolutions and of batch normalisations.

  Batch normalisation keeps 0.9 of its running statistics per step and adds 1e-5
  to the variance, the values of the original PyTorch code.
  """
  conv = functools.partial(
    nn.Conv,
    use_bias=False,
    dtype=dtype,
    kernel_init=he_normal,
    conv_general_dilated=conv_general_dilated,
  )
  norm = functools.partial(
    nn.BatchNorm,
    use_running_average=not train,
    momentum=0.9,
    epsilon=1e-5,
    dtype=dtype,
  )
  return conv, norm
