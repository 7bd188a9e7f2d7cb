"""Convolutions of few channels, by blocks: on CPUs.

XLA:CPU has a fast kernel for more than 16 output channels. Fewer go to one that
gathers the taps of every output for itself, which for few input channels takes
most of its time. A convolution of the same result keeps both busy: blocks of
2 x 2 outputs are channels, and so are the blocks of inputs that their first
taps meet, `2 s x 2 s` for a stride of s. It has no strides, and multiplies
zeros where an output has no tap in a block.

Measured over 16 x 16 to 32 x 32 places, kernels of 3 x 3 to 5 x 5: 3 to 8 times
as fast for up to 4 channels, twice for 8, no gain beyond the limits below.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

_SIDE = 2  # Of a block of outputs.
_MOST = 64  # Channels of a block, of inputs and of outputs.


def is_narrow(kernel: jax.Array, strides: Sequence[int]) -> bool:
  """Whether blocks are worth it, for a kernel [height, width, I, O]."""
  *taps, inputs, outputs = kernel.shape
  if len(taps) != 2 or max(taps) == 1:
    return False
  inputs_of_block = inputs * strides[0] * strides[1] * _SIDE**2
  return inputs_of_block <= _MOST and outputs * _SIDE**2 <= _MOST


def by_blocks(
  x: jax.Array,
  kernel: jax.Array,
  strides: Sequence[int],
  padding: Sequence[tuple[int, int]],
  precision: Any,
) -> jax.Array:
  """The channels-last convolution of `x` [B, H, W, I]; [B, H', W', O]."""
  axes = [
    _Axis(n, k, s, *pads)
    for n, k, s, pads in zip(
      x.shape[1:3], kernel.shape[:2], strides, padding, strict=True
    )
  ]
  output = jax.lax.conv_general_dilated(
    _input_blocks(x, axes),
    _kernel_blocks(kernel, axes),
    (1, 1),
    "VALID",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    precision=precision,
  )
  batch, height, width, _ = output.shape
  output = output.reshape(batch, height, width, _SIDE, _SIDE, -1)
  output = jnp.swapaxes(output, 2, 3)
  output = output.reshape(batch, height * _SIDE, width * _SIDE, -1)
  return output[:, : axes[0].outputs, : axes[1].outputs]


class _Axis:
  """One spatial axis: `n` inputs, `k` taps, a stride, paddings."""

  def __init__(self, n: int, k: int, stride: int, low: int, high: int):
    self.stride, self.low = stride, low
    self.outputs = (n + low + high - k) // stride + 1
    self.block = _SIDE * stride
    # Blocks that the taps of a block of outputs reach.
    self.reach = -(-(k + (_SIDE - 1) * stride) // self.block)
    self.blocks = -(-self.outputs // _SIDE) + self.reach - 1
    # What makes blocks whole: of inputs and, per place of outputs, of taps.
    self.high = self.blocks * self.block - n - low
    self.missing = [
      (place * stride, self.reach * self.block - k - place * stride)
      for place in range(_SIDE)
    ]


def _input_blocks(x: jax.Array, axes: list[_Axis]) -> jax.Array:
  pads = [(axis.low, axis.high, 0) for axis in axes]
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
