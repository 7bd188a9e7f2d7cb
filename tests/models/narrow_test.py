"""The same sums by blocks, and the choice of when."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import models
from jaxadv.models import narrow
from jaxadv.models.window import Window

NHWC = ("NHWC", "HWIO", "NHWC")


@pytest.mark.parametrize("size", [(1, 1), (5, 8), (9, 6)])
@pytest.mark.parametrize("kernel", [(1, 3), (2, 2), (4, 5), (7, 3)])
@pytest.mark.parametrize("strides", [(1, 1), (2, 1), (2, 3)])
def test_blocks_give_the_convolution(size, kernel, strides):
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(2, *size, 3)), jnp.float32)
  weights = jnp.asarray(rng.normal(size=(*kernel, 3, 2)), jnp.float32)
  # Room for the kernel in the smallest image, unlike on both sides.
  padding = ((3, 4), (4, 2))
  expected = jax.lax.conv_general_dilated(
    x, weights, strides, padding, dimension_numbers=NHWC
  )
  window = Window(size, kernel, strides, padding, None)
  found = narrow.by_blocks(window, x, weights)
  np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
  ("kernel", "strides", "expected"),
  [
    ((3, 3, 1, 16), (1, 1), True),
    ((5, 5, 1, 16), (2, 2), True),
    ((3, 3, 3, 16), (1, 1), True),
    ((3, 3, 16, 4), (1, 1), True),
    ((3, 3, 17, 4), (1, 1), False),
    ((3, 3, 1, 17), (1, 1), False),
    ((3, 3, 5, 16), (2, 2), False),
    ((1, 1, 1, 16), (1, 1), False),
    ((3, 1, 16), (1,), False),
    ((3, 3, 3, 1, 16), (1, 1, 1), False),
  ],
)
def test_blocks_are_for_few_channels(kernel, strides, expected):
  taps = kernel[:-2]
  window = Window((8,) * len(taps), taps, strides, ((0, 0),) * len(taps), None)
  assert narrow.is_narrow(window, jnp.zeros(kernel)) == expected


def _outputs_of_convolutions(platform):
  conv = jax.jit(
    lambda x, kernel: models.conv_general_dilated(
      x, kernel, (2, 2), "SAME", dimension_numbers=NHWC
    )
  )
  traced = conv.trace(jnp.ones((2, 8, 8, 1)), jnp.ones((3, 3, 1, 5)))
  text = traced.lower(lowering_platforms=(platform,)).as_text()
  (line,) = (
    line for line in text.splitlines() if "stablehlo.convolution" in line
  )
  return line.rsplit("->", 1)[1]


def test_blocks_are_for_cpus():
  assert "2x2x2x20xf32" in _outputs_of_convolutions("cpu")
  assert "2x4x4x5xf32" in _outputs_of_convolutions("cuda")
