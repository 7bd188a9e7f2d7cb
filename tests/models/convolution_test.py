import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxadv import models

NHWC = ("NHWC", "HWIO", "NHWC")


def _conv(conv_fn, strides, padding, **options):
  return functools.partial(
    conv_fn,
    window_strides=strides,
    padding=padding,
    dimension_numbers=NHWC,
    **options,
  )


def _pair(strides, padding, **options):
  return (
    _conv(models.conv_general_dilated, strides, padding, **options),
    _conv(jax.lax.conv_general_dilated, strides, padding, **options),
  )


def _normal(shape, dtype=jnp.float32):
  return jnp.asarray(np.random.default_rng(0).normal(size=shape), dtype)


def _operands(size, kernel, dtype=jnp.float32, groups=1):
  return (
    _normal((2, *size, 4), dtype),
    _normal((*kernel, 4 // groups, 6), dtype),
  )


def _loss(conv, x, kernel):
  return jnp.sum(jnp.sin(conv(x, kernel)).astype(jnp.float32))


def _gradients(conv):
  return jax.grad(functools.partial(_loss, conv), argnums=(0, 1))


def _penalty(conv, x, kernel):
  """Needs the derivative of both gradients with respect to both arguments."""
  gx, gk = _gradients(conv)(x, kernel)
  return _loss(conv, x, kernel) + jnp.sum(gx**2) + jnp.sum(jnp.cos(gk))


def _both(make_fn, own, lax):
  """Results of `make_fn(own)` and `make_fn(lax)`, compiled together."""
  return jax.jit(
    lambda *operands: (make_fn(own)(*operands), make_fn(lax)(*operands))
  )


def _close(actual, expected, rtol=1e-4):
  for a, b in zip(
    jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True
  ):
    assert a.shape == b.shape and a.dtype == b.dtype
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert np.abs(a - b).max() <= rtol * max(np.abs(b).max(), 1.0)


GEOMETRIES = [
  ((9, 7), (5, 3), (2, 2), "SAME"),
  ((7, 10), (2, 3), (3, 2), "VALID"),
  ((6, 7), (3, 3), (2, 3), ((0, 2), (4, 0))),
  ((7, 7), (3, 3), (2, 2), ((-1, 0), (0, -2))),
  ((7, 8), (1, 1), (2, 3), "SAME_LOWER"),
]


@pytest.mark.parametrize("size, kernel, strides, padding", GEOMETRIES)
def test_output_and_gradients_are_those_of_lax(size, kernel, strides, padding):
  own, lax = _pair(strides, padding)
  x, weights = _operands(size, kernel)
  (y_own, *grads_own), (y_lax, *grads_lax) = _both(
    lambda conv: lambda x, k: (conv(x, k), *_gradients(conv)(x, k)), own, lax
  )(x, weights)
  _close(y_own, y_lax, rtol=1e-6)
  _close(grads_own, grads_lax)


@pytest.mark.parametrize("channels", [(3, 20), (3, 64), (5, 21)])
def test_odd_channels(channels):
  inputs, outputs = channels
  own, lax = _pair((2, 2), "SAME")
  x, kernel = _normal((2, 9, 8, inputs)), _normal((3, 5, inputs, outputs))
  outcomes = _both(
    lambda conv: lambda x, k: (conv(x, k), *_gradients(conv)(x, k)), own, lax
  )
  _close(*outcomes(x, kernel))


@pytest.mark.parametrize(
  "kernel, channels",
  [
    ((3, 3, 3, 20), 4),
    ((3, 3, 5, 96), 8),
    ((3, 3, 3, 64), 3),
    ((3, 3, 6, 20), 6),
    ((1, 1, 3, 20), 3),
  ],
)
def test_odd_channels_are_padded_on_cpus(kernel, channels):
  conv = jax.jit(_pair((1, 1), "SAME")[0])
  traced = conv.trace(_normal((2, 8, 8, kernel[2])), _normal(kernel))
  for platform, used in (("cpu", channels), ("cuda", kernel[2])):
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    (line,) = (t for t in text.splitlines() if "stablehlo.convolution" in t)
    assert f"x{used}xf32>, " in line.rsplit(" : ", 1)[1]


@pytest.mark.parametrize("size, kernel, strides, padding", GEOMETRIES[:2])
def test_second_order_gradients_are_those_of_lax(
  size, kernel, strides, padding
):
  own, lax = _pair(strides, padding)
  x, weights = _operands(size, kernel)
  second = _both(
    lambda conv: jax.grad(functools.partial(_penalty, conv), argnums=(0, 1)),
    own,
    lax,
  )
  _close(*second(x, weights), rtol=1e-3)


def test_bfloat16_gradients_are_those_of_lax():
  own, lax = _pair((2, 2), "SAME")
  x, weights = _operands((8, 8), (3, 3), jnp.bfloat16)
  _close(*_both(_gradients, own, lax)(x, weights), rtol=2e-2)


def test_three_spatial_axes():
  x = _normal((2, 3, 4, 5, 2))
  kernel = _normal((2, 3, 2, 2, 3))
  own, lax = (
    functools.partial(
      conv,
      window_strides=(2, 2, 2),
      padding="SAME",
      dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
    )
    for conv in (models.conv_general_dilated, jax.lax.conv_general_dilated)
  )
  _close(*_both(_gradients, own, lax)(x, kernel))


@pytest.mark.parametrize(
  "options, groups",
  [
    ({"feature_group_count": 2}, 2),
    ({"rhs_dilation": (2, 2)}, 1),
    ({"lhs_dilation": (2, 1), "padding": ((1, 1), (0, 2))}, 1),
    ({"preferred_element_type": jnp.float32}, 1),
  ],
)
def test_what_it_does_not_cover_goes_to_lax(options, groups):
  own, lax = _pair((1, 1), **{"padding": "SAME", **options})
  x, kernel = _operands((8, 8), (3, 3), groups=groups)
  assert "custom_vjp" not in str(jax.make_jaxpr(own)(x, kernel))
  _close(*_both(_gradients, own, lax)(x, kernel))


def test_channels_first_goes_to_lax():
  x, kernel = jnp.ones((2, 3, 8, 8)), jnp.ones((5, 3, 3, 3))
  own = models.conv_general_dilated(x, kernel, (1, 1), "SAME")
  lax = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME")
  np.testing.assert_array_equal(own, lax)


def test_vmap_over_inputs_and_stacked_kernels():
  own, lax = _pair((2, 2), "SAME")
  x, kernel = _operands((8, 7), (3, 3))
  x = jnp.stack([x, 2 * x, -x])
  kernels = jnp.stack([kernel, -kernel, 0.5 * kernel])

  def gradients(conv):
    one = _gradients(conv)
    return lambda x, kernels: (
      jax.vmap(one)(x, kernels),
      jax.vmap(one, in_axes=(0, None))(x, kernels[0]),
    )

  _close(*_both(gradients, own, lax)(x, kernels))


def test_inside_loops():
  own, lax = _pair((2, 2), "SAME")
  operands = _operands((8, 7), (3, 3))

  def descend(conv, operands):
    def step(operands):
      return jax.tree.map(
        lambda a, g: a - 0.01 * g, operands, _gradients(conv)(*operands)
      )

    operands, _ = jax.lax.scan(lambda c, _: (step(c), None), operands, length=2)
    return jax.lax.while_loop(
      lambda c: c[0] < 2, lambda c: (c[0] + 1, step(c[1])), (0, operands)
    )[1]

  run = jax.jit(descend, static_argnums=0)
  _close(run(own, operands), run(lax, operands))


@pytest.mark.parametrize("argument", [0, 1])
def test_inside_shard_map_with_replicated_kernel(argument):
  own, lax = _pair((2, 2), "SAME")
  x, kernel = _operands((8, 7), (3, 3))
  mesh = jax.make_mesh(
    (1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
  )
  rows, whole = jax.sharding.PartitionSpec("data"), jax.sharding.PartitionSpec()
  gradient = jax.grad(functools.partial(_loss, own), argnums=argument)
  sharded = jax.shard_map(
    gradient,
    mesh=mesh,
    in_specs=(rows, whole),
    out_specs=(rows, whole)[argument],
  )
  _close(jax.jit(sharded)(x, kernel), _gradients(lax)(x, kernel)[argument])


def _while_body_convolutions(gradient, *operands):
  """Texts of the convolutions in the compiled program of a loop."""

  def loop(*operands):
    def body(carry):
      i, current, result = carry
      result = gradient(*current)
      return (
        i + 1,
        jax.tree.map(lambda a, g: a + g, current, result),
        result,
      )

    return jax.lax.while_loop(
      lambda carry: carry[0] < 3, body, (0, operands, operands)
    )[1]

  text = jax.jit(loop).lower(*operands).compile().as_text()
  return [line for line in text.splitlines() if " convolution(" in line]


@pytest.mark.skipif(
  jax.default_backend() != "cpu", reason="the layout concerns CPUs"
)
def test_loops_hold_only_ordinary_convolutions():
  own, lax = _pair((2, 2), "SAME")
  operands = _operands((8, 8), (3, 3))
  ordinary = "dim_labels=b01f_01io->b01f"
  own_lines = _while_body_convolutions(_gradients(own), *operands)
  lax_lines = _while_body_convolutions(_gradients(lax), *operands)
  assert len(own_lines) == len(lax_lines) == 3
  assert all(ordinary in line for line in own_lines)
  assert not all(ordinary in line for line in lax_lines)


def test_other_platforms_get_the_rules_of_jax():
  own, lax = _pair((2, 2), "SAME")
  operands = _operands((8, 8), (3, 3))
  texts = []
  for conv in (own, lax):
    traced = jax.jit(_gradients(conv)).trace(*operands)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "optimization_barrier" not in text
    texts.append(
      sorted(
        line[line.index("dim_numbers") :]
        for line in text.splitlines()
        if "stablehlo.convolution" in line
      )
    )
  assert texts[0] == texts[1]


def test_max_pool_is_that_of_flax_and_crops_odd_sizes():
  x = _normal((2, 7, 6, 3))

  def flax_pool(x):
    return nn.max_pool(x, (2, 2), (2, 2))

  np.testing.assert_array_equal(models.max_pool_2x2(x), flax_pool(x))
  own, flax = jax.jit(
    lambda x: tuple(
      jax.grad(lambda x, pool=pool: jnp.sum(jnp.sin(pool(x))))(x)
      for pool in (models.max_pool_2x2, flax_pool)
    )
  )(x)
  np.testing.assert_allclose(own, flax, rtol=1e-6)
