"""A convolution whose gradients are as fast inside a loop as outside.

XLA:CPU brings convolutions into the layout of its fast kernel only in the
entry computation of a program. The gradients that JAX writes for a convolution
have swapped axes, so inside `lax.while_loop` or `lax.scan` they fall to a naive
kernel: an input gradient takes 2 to 6 times and a kernel gradient up to 80
times as long as outside (https://github.com/jax-ml/jax/issues/12868). Here both
are written as ordinary channels-last convolutions of operands transposed as
data, with `swap` exchanging the batch (or input) and the output axis:

    input gradient  = interleave(conv(g, swap(flip(phases(kernel)))))
    kernel gradient = swap(conv(swap(x), dilate(swap(g), strides)))

With strides s an input position `s q + r` meets every s-th tap of the kernel
only, those of its phase r: one convolution without strides gives all phases as
channels, and multiplies no zeros as the dilated form does (in three of four
places for s = 2, which takes up to 2.6 times as long).

The optimisation barriers keep XLA from folding the transpositions back into the
convolution. Other platforms have kernels of their own for both gradients, which
XLA recognises by the form of JAX's rules: they get those.

The price is forward-mode differentiation (`jax.jvp`, `jax.jacfwd`,
`jax.hessian`), which `jax.custom_vjp` does not support. Networks take
`conv_general_dilated=jax.lax.conv_general_dilated` where it is needed.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxadv.models import narrow
from jaxadv.models.window import Window, channels_last

_Convolution = Callable[[Window, jax.Array, jax.Array], jax.Array]


# The output and both gradients are linear in each of their arguments, and the
# gradients of any of the three are the other two: reverse-mode differentiation
# of every order stays within them.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _output(window: Window, x: jax.Array, kernel: jax.Array) -> jax.Array:
  best = _form_on_cpus(window, kernel)
  if best is _plain:
    return _plain(window, x, kernel)
  return jax.lax.platform_dependent(
    x,
    kernel,
    cpu=functools.partial(best, window),
    default=functools.partial(_plain, window),
  )


def _form_on_cpus(window: Window, kernel: jax.Array) -> _Convolution:
  if narrow.is_narrow(window, kernel):
    return narrow.by_blocks
  return _padded if _is_odd(window, kernel) else _plain


def _is_odd(window: Window, kernel: jax.Array) -> bool:
  """Whether XLA:CPU has no fast kernel for these input channels.

  Such are odd numbers, unless the outputs are a multiple of 64. With zeros up
  to a multiple of 4, kernels of 3 x 3 to 7 x 7 are 3 to 14 times as fast for 3
  channels and up to 32 outputs, 1.5 to 3 times for 5 to 13 channels, 1.3 to 1.7
  times for 31; for 48 and 96 outputs 0.8 to 2.7 times.
  """
  inputs, outputs = kernel.shape[-2:]
  spatial = len(window.kernel) == 2 and max(window.kernel) > 1
  return spatial and inputs > 1 and inputs % 2 == 1 and outputs % 64 != 0


def _padded(window: Window, x: jax.Array, kernel: jax.Array) -> jax.Array:
  """The same, with zeros for channels that make them a multiple of 4."""
  missing = -x.shape[-1] % 4
  x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)])
  zeros = [(0, 0)] * (kernel.ndim - 2) + [(0, missing), (0, 0)]
  return _plain(window, x, jnp.pad(kernel, zeros))


def _plain(window: Window, x: jax.Array, kernel: jax.Array) -> jax.Array:
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    window.strides,
    window.padding,
    dimension_numbers=channels_last(x.ndim),
    precision=window.precision,
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _input_gradient(
  window: Window, g: jax.Array, kernel: jax.Array
) -> jax.Array:
  spatial = tuple(range(kernel.ndim - 2))
  conv = functools.partial(
    jax.lax.conv_general_dilated,
    window_strides=(1,) * len(spatial),
    padding=window.gradient_padding()[0],
    lhs_dilation=window.strides,
    precision=window.precision,
  )

  def as_dimension_numbers(g, kernel):
    swapped = (g.ndim - 2, g.ndim - 1, *spatial)
    numbers = channels_last(g.ndim)._replace(rhs_spec=swapped)
    return conv(g, jnp.flip(kernel, spatial), dimension_numbers=numbers)

  return jax.lax.platform_dependent(
    g,
    kernel,
    cpu=functools.partial(_by_phases, window),
    default=as_dimension_numbers,
  )


def _by_phases(window: Window, g: jax.Array, kernel: jax.Array) -> jax.Array:
  """The input gradient without a dilation."""
  spatial, channels = len(window.strides), kernel.shape[-2]
  phases = window.phases(g.shape[1:-1])
  taps, rest = range(0, 2 * spatial, 2), range(1, 2 * spatial, 2)
  # From [taps..., I, O] to [taps per phase..., O, phases... x I], turned.
  kernel = jnp.pad(kernel, [*(p.missing for p in phases), (0, 0), (0, 0)])
  split = [(p.taps, s) for p, s in zip(phases, window.strides, strict=True)]
  kernel = kernel.reshape(*sum(split, ()), channels, -1)
  kernel = jnp.flip(kernel, taps)
  order = (*taps, 2 * spatial + 1, *rest, 2 * spatial)
  kernel = jnp.transpose(kernel, order)
  kernel = kernel.reshape(*(p.taps for p in phases), g.shape[-1], -1)
  kernel = jax.lax.optimization_barrier(kernel)
  whole = Window(
    inputs=g.shape[1:-1],
    kernel=kernel.shape[:spatial],
    strides=(1,) * spatial,
    padding=tuple(p.padding for p in phases),
    precision=window.precision,
  )
  x = _form_on_cpus(whole, kernel)(whole, g, kernel)
  # From [B, q..., phases... x I] to [B, places..., I].
  x = x.reshape(*x.shape[:-1], *window.strides, channels)
  pairs = ((1 + axis, 1 + spatial + axis) for axis in range(spatial))
  x = jnp.transpose(x, (0, *sum(pairs, ()), 2 * spatial + 1))
  x = x.reshape(len(x), *(p.places for p in phases), channels)
  return x[:, *(slice(n) for n in window.inputs)]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _kernel_gradient(window: Window, x: jax.Array, g: jax.Array) -> jax.Array:
  last = x.ndim - 1
  spatial = tuple(range(1, last))
  conv = functools.partial(
    jax.lax.conv_general_dilated,
    window_strides=(1,) * len(spatial),
    padding=window.gradient_padding()[1],
    rhs_dilation=window.strides,
    precision=window.precision,
  )

  def as_data(x, g):
    x, g = jnp.swapaxes(x, 0, last), jnp.moveaxis(g, 0, -2)
    x, g = jax.lax.optimization_barrier((x, g))
    kernel = conv(x, g, dimension_numbers=channels_last(x.ndim))
    return jnp.moveaxis(jax.lax.optimization_barrier(kernel), 0, -2)

  def as_dimension_numbers(x, g):
    data = (last, 0, *spatial)
    kernel = (last - 1, last, *range(last - 1))
    numbers = jax.lax.ConvDimensionNumbers(data, data, kernel)
    return conv(x, g, dimension_numbers=numbers)

  return jax.lax.platform_dependent(
    x, g, cpu=as_data, default=as_dimension_numbers
  )


_output.defvjp(
  lambda window, x, kernel: (_output(window, x, kernel), (x, kernel)),
  lambda window, saved, g: (
    _input_gradient(window, g, saved[1]),
    _kernel_gradient(window, saved[0], g),
  ),
)
_input_gradient.defvjp(
  lambda window, g, kernel: (_input_gradient(window, g, kernel), (g, kernel)),
  lambda window, saved, x: (
    _output(window, x, saved[1]),
    _kernel_gradient(window, x, saved[0]),
  ),
)
_kernel_gradient.defvjp(
  lambda window, x, g: (_kernel_gradient(window, x, g), (x, g)),
  lambda window, saved, kernel: (
    _input_gradient(window, saved[1], kernel),
    _output(window, saved[0], kernel),
  ),
)


def conv_general_dilated(
  lhs: jax.Array,
  rhs: jax.Array,
  window_strides: Sequence[int],
  padding: str | Sequence[tuple[int, int]],
  dimension_numbers: Any = None,
  precision: Any = None,
  **options: Any,
) -> jax.Array:
  """`jax.lax.conv_general_dilated` with gradients that are fast in loops.

  For `flax.linen.Conv(conv_general_dilated=...)`. Output and gradients are
  those of the original, at any order of reverse-mode differentiation.
  Convolutions that are not channels-last (`NHWC`, `HWIO`, `NHWC` and their
  one- and three-dimensional kin), are dilated or grouped, or ask for another
  output type, go to the original unchanged.

  Args:
    lhs: Inputs [B, spatial..., I].
    rhs: Kernel [spatial..., I, O].
    window_strides: One stride per spatial axis.
    padding: "SAME", "VALID", "SAME_LOWER" or one (low, high) per spatial axis.
    dimension_numbers: As in JAX; note that its default is channels-first.
    precision: As in JAX.
    **options: Every other argument of `jax.lax.conv_general_dilated`.

  Returns:
    Outputs [B, spatial..., O].

  Raises:
    TypeError: If differentiated in forward mode.
  """
  numbers = jax.lax.conv_dimension_numbers(
    lhs.shape, rhs.shape, dimension_numbers
  )
  strides = tuple(window_strides)
  if numbers != channels_last(lhs.ndim) or any(map(_is_set, options.values())):
    return jax.lax.conv_general_dilated(
      lhs,
      rhs,
      strides,
      padding,
      dimension_numbers=numbers,
      precision=precision,
      **options,
    )
  inputs, kernel = lhs.shape[1:-1], rhs.shape[:-2]
  if isinstance(padding, str):
    padding = jax.lax.padtype_to_pads(inputs, kernel, strides, padding)
  pads = tuple((int(low), int(high)) for low, high in padding)
  window = Window(inputs, kernel, strides, pads, precision)
  return _output(window, *_vary_alike(lhs, rhs))


def _vary_alike(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Makes both vary over the same mesh axes inside `jax.shard_map`.

  JAX's own operations do so themselves, functions with custom rules do not.
  """
  one_x, one_kernel = (
    jnp.ones_like(x, shape=()),
    jnp.ones_like(kernel, shape=()),
  )
  if jax.typeof(one_x) == jax.typeof(one_kernel):
    return x, kernel
  return x * one_kernel, kernel * one_x


def _is_set(option: Any) -> bool:
  """Whether a dilation, group count or type differs from its default."""
  values = option if isinstance(option, Sequence) else (option,)
  return any(value not in (None, 1) for value in values)


def max_pool_2x2(x: jax.Array) -> jax.Array:
  """Largest of every 2 x 2 window, stride 2, of `x` [B, H, W, C].

  A reshape and a maximum: the gradient needs no select-and-scatter, which is
  slow on CPUs. Odd sizes lose their last row or column ("VALID"). The gradient
  of a tie is shared equally; `flax.linen.max_pool` gives it to the first.
  """
  batch, height, width, channels = x.shape
  height, width = height // 2, width // 2
  x = x[:, : 2 * height, : 2 * width]
  return x.reshape(batch, height, 2, width, 2, channels).max(axis=(2, 4))
