"""The static side of a convolution: sizes, strides, paddings, phases."""

from typing import Any, NamedTuple

import jax

Padding = tuple[tuple[int, int], ...]


class Window(NamedTuple):
  """The static side of a channels-last convolution: its spatial axes."""

  inputs: tuple[int, ...]
  kernel: tuple[int, ...]
  strides: tuple[int, ...]
  padding: Padding
  precision: Any

  def gradient_padding(self) -> tuple[Padding, Padding]:
    """Paddings of the two dilated convolutions that compute the gradients."""
    for_input, for_kernel = [], []
    for n, k, s, (low, high) in zip(
      self.inputs, self.kernel, self.strides, self.padding, strict=True
    ):
      room = n + low + high - k
      dilated = room // s * s + 1 if room >= 0 else 0
      for_input.append((k - 1 - low, n - dilated + low))
      for_kernel.append((low, k - 1 + dilated - n - low))
    return tuple(for_input), tuple(for_kernel)

  def phases(self, outputs: tuple[int, ...]) -> list["Phase"]:
    """How each spatial axis of the input is made of phases."""
    return [
      Phase.of(n, k, s, low, out)
      for n, k, s, (low, _), out in zip(
        self.inputs,
        self.kernel,
        self.strides,
        self.padding,
        outputs,
        strict=True,
      )
    ]


class Phase(NamedTuple):
  """One spatial axis: input place `stride * q + r` is of phase r.

  Attributes:
    taps: Of the kernel, per phase.
    missing: Taps to add before and after the kernel for as many in each phase.
    padding: Of the convolution that gives all q.
    places: Of all phases together; at least the inputs.
  """

  taps: int
  missing: tuple[int, int]
  padding: tuple[int, int]
  places: int

  @classmethod
  def of(cls, n: int, k: int, stride: int, low: int, outputs: int) -> "Phase":
    """Of `n` inputs behind `low` of padding, and a kernel of `k` taps.

    Tap t brings input `stride q + r` to output q - u where
    `t = stride u + r + low`.
    """
    first, last = -((stride - 1 + low) // stride), (k - 1 - low) // stride
    taps, length = last - first + 1, -(-n // stride)
    before = -low - stride * first
    return cls(
      taps=taps,
      missing=(before, taps * stride - k - before),
      padding=(last, length - first - outputs),
      places=length * stride,
    )


def channels_last(ndim: int) -> jax.lax.ConvDimensionNumbers:
  """Of inputs [B, spatial..., I] and kernels [spatial..., I, O]."""
  data = (0, ndim - 1, *range(1, ndim - 1))
  kernel = (ndim - 1, ndim - 2, *range(ndim - 2))
  return jax.lax.ConvDimensionNumbers(data, kernel, data)
