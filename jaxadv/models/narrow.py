"""Convolutions of few channels, by blocks: on CPUs.

XLA:CPU has a fast kernel for more than 16 output channels. Fewer go to one that
gathers the taps of every output for itself, which for few input channels takes
most of its time. A convolution of the same result keeps both busy: blocks of
2 x 2 outputs are channels, and so are the blocks of inputs that their first
taps meet, `2 s x 2 s` for a stride of s. It has no strides, and multiplies
zeros where an output has no tap in a block.

Measured at 16 x 16 places, kernels of 3 x 3 and 5 x 5, 1 to 16 outputs. Without
strides: 3 to 7.5 times as fast for up to 4 channels, 1.4 to 2.9 times for 8,
1.0 to 2.3 times for 16. With a stride of 2: 2 to 7 times for one channel, 1.0
to 5 times for 3, no gain for 4, nor beyond the limits below.
"""

import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxadv.models.window import Window

_SIDE = 2  # Of a block of outputs.
_MOST = 64  # Channels of a block, of inputs and of outputs.


def is_narrow(window: Window, kernel: jax.Array) -> bool:
  """Whether blocks are worth it, for a kernel [spatial..., I, O]."""
  if len(window.kernel) != 2 or max(window.kernel) == 1:
    return False
  inputs, outputs = kernel.shape[-2:]
  inputs_of_block = inputs * math.prod(window.strides) * _SIDE**2
  return inputs_of_block <= _MOST and outputs * _SIDE**2 <= _MOST


def by_blocks(window: Window, x: jax.Array, kernel: jax.Array) -> jax.Array:
  """The channels-last convolution of `x` [B, H, W, I]; [B, H', W', O]."""
  sizes = zip(
    window.inputs, window.kernel, window.strides, window.padding, strict=True
  )
  axes = [_Axis.of(n, k, s, *pads) for n, k, s, pads in sizes]
  output = jax.lax.conv_general_dilated(
    _input_blocks(x, axes),
    _kernel_blocks(kernel, axes),
    (1, 1),
    "VALID",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    precision=window.precision,
  )
  batch, height, width, _ = output.shape
  output = output.reshape(batch, height, width, _SIDE, _SIDE, -1)
  output = jnp.swapaxes(output, 2, 3)
  output = output.reshape(batch, height * _SIDE, width * _SIDE, -1)
  return output[:, : axes[0].outputs, : axes[1].outputs]


class _Axis(NamedTuple):
  """One spatial axis.

  Attributes:
    outputs: Their number.
    block: Inputs of a block.
    blocks: Blocks of inputs.
    reach: Of these, how many the taps of a block of outputs meet.
    padding: What makes blocks of inputs whole.
    missing: For each place in a block of outputs, taps to add before and after
      the kernel.
  """

  outputs: int
  block: int
  blocks: int
  reach: int
  padding: tuple[int, int]
  missing: list[tuple[int, int]]

  @classmethod
  def of(cls, n: int, k: int, stride: int, low: int, high: int) -> "_Axis":
    """Of `n` inputs between `low` and `high` of padding and `k` taps."""
    outputs, block = (n + low + high - k) // stride + 1, _SIDE * stride
    reach = -(-(k + (_SIDE - 1) * stride) // block)
    blocks = -(-outputs // _SIDE) + reach - 1
    shifts = [place * stride for place in range(_SIDE)]
    return cls(
      outputs=outputs,
      block=block,
      blocks=blocks,
      reach=reach,
      padding=(low, blocks * block - n - low),
      missing=[(shift, reach * block - k - shift) for shift in shifts],
    )


def _input_blocks(x: jax.Array, axes: list[_Axis]) -> jax.Array:
  pads = [(*axis.padding, 0) for axis in axes]
  x = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *pads, (0, 0, 0)])
  rows, columns = axes
  shape = (rows.blocks, rows.block, columns.blocks, columns.block)
  x = x.reshape(len(x), *shape, -1)
  x = jnp.swapaxes(x, 2, 3)
  return x.reshape(len(x), rows.blocks, columns.blocks, -1)


def _kernel_blocks(kernel: jax.Array, axes: list[_Axis]) -> jax.Array:
  *_, inputs, outputs = kernel.shape
  rows, columns = axes
  placed = [
    jnp.pad(kernel, (*missing, (0, 0), (0, 0)))
    for missing in itertools.product(rows.missing, columns.missing)
  ]
  shape = (rows.reach, rows.block, columns.reach, columns.block)
  blocks = jnp.stack(placed, axis=-2).reshape(*shape, inputs, -1)
  blocks = jnp.swapaxes(blocks, 1, 2)
  return blocks.reshape(rows.reach, columns.reach, -1, outputs * _SIDE**2)
