"""Every network: sizes, the shared calling convention, its own facts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxadv import models
from jaxadv.models import residual

DIGITS = (3, 8, 8, 1)
COLOUR = (3, 8, 8, 3)

SMALL = [
  (models.MLP, {"features": (7,)}, DIGITS),
  (models.MadryCNN, {}, DIGITS),
  (models.SmallCNN, {}, (3, 16, 16, 1)),
  (models.StridedCNN, {}, DIGITS),
  (models.PreActResNet, {"width": 4, "stage_sizes": (1, 1)}, COLOUR),
  (models.WideResNet, {"depth": 10, "widen_factor": 1}, COLOUR),
]
every_network = pytest.mark.parametrize(
  "network, options, shape", SMALL, ids=[row[0].__name__ for row in SMALL]
)
every_residual = pytest.mark.parametrize(
  "network, options, shape", SMALL[-2:], ids=["PreActResNet", "WideResNet"]
)


def _uniform(shape):
  return np.random.default_rng(1).uniform(size=shape).astype(np.float32)


def _num_weights(module, shape):
  variables = jax.eval_shape(
    module.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32)
  )
  return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


@pytest.mark.parametrize(
  "module, shape, expected",
  [
    (models.MadryCNN(), (1, 28, 28, 1), 3_274_634),
    (models.SmallCNN(), (1, 28, 28, 1), 312_202),
    (models.StridedCNN(), (1, 28, 28, 1), 166_406),
    (models.seed_network(), (1, 28, 28, 1), 784 * 20 + 20 + 20 * 10 + 10),
    (models.PreActResNet(), (1, 32, 32, 3), 11_171_146 + 2 * 512),
    (models.WideResNet(depth=28), (1, 32, 32, 3), 36_479_194),
    (models.WideResNet(depth=34), (1, 32, 32, 3), 46_160_474),
  ],
)
def test_number_of_weights(module, shape, expected):
  assert _num_weights(module, shape) == expected


def _variables(module, shape):
  """Random weights of the right shapes, without compiling `module.init`."""
  rng = np.random.default_rng(0)

  def fill(path, leaf):
    if path[-1].key in ("var", "scale"):
      return rng.uniform(0.5, 1.5, leaf.shape).astype(leaf.dtype)
    size = np.sqrt(max(leaf.size // leaf.shape[-1], 1))
    return rng.normal(size=leaf.shape).astype(leaf.dtype) / np.float32(size)

  shapes = jax.eval_shape(
    module.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32)
  )
  return jax.tree_util.tree_map_with_path(fill, shapes)


@every_network
def test_shared_calling_convention(network, options, shape):
  x = _uniform(shape)
  module = network(num_classes=4, **options)
  variables = _variables(module, shape)
  apply_fn = jax.jit(module.apply)
  logits = apply_fn(variables, x)
  assert logits.shape == (3, 4) and logits.dtype == jnp.float32
  assert np.unique(logits).size > 1
  other = apply_fn(variables, np.concatenate([0 * x[:1], x[1:]]))
  assert np.any(logits[0] != other[0])
  np.testing.assert_array_equal(logits[1:], other[1:])
  trained, updates = jax.eval_shape(
    lambda variables, x: module.apply(
      variables,
      x,
      train=True,
      rngs={"dropout": jax.random.key(2)},
      mutable=["batch_stats"],
    ),
    variables,
    x,
  )
  assert trained.shape == (3, 4)
  assert bool(updates) == ("batch_stats" in variables)


@every_network
def test_bfloat16_keeps_float32_weights_and_logits(network, options, shape):
  module = network(dtype=jnp.bfloat16, **options)
  variables = _variables(module, shape)
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {
    np.dtype("float32")
  }
  jaxpr = jax.make_jaxpr(module.apply)(variables, jnp.zeros(shape))
  assert jaxpr.out_avals[0].dtype == jnp.float32
  products = [
    line
    for line in str(jaxpr).splitlines()
    if " dot_general[" in line or " conv_general_dilated[" in line
  ]
  assert products and all(":bf16[" in line for line in products)


def test_bfloat16_logits_are_near_those_of_float32():
  x = _uniform(DIGITS)
  full, half = models.StridedCNN(), models.StridedCNN(dtype=jnp.bfloat16)
  variables = _variables(full, DIGITS)
  np.testing.assert_allclose(
    jax.jit(half.apply)(variables, x),
    jax.jit(full.apply)(variables, x),
    atol=0.05,
  )


@pytest.mark.parametrize(
  "row, expected", list(zip(SMALL, (1, 3, 6, 3, 5, 7), strict=True))
)
def test_every_nonlinearity_is_the_activation(row, expected):
  network, options, shape = row
  shapes = []

  def activation(x):
    shapes.append(x.shape)
    return nn.relu(x)

  module = network(activation=activation, **options)
  jax.eval_shape(module.init, jax.random.key(0), jnp.zeros(shape))
  assert len(shapes) == expected


@every_network
def test_convolutions_are_those_with_fast_gradients(network, options, shape):
  if network is models.MLP:
    return
  module = network(**options)
  x = jnp.zeros(shape)
  variables = jax.eval_shape(module.init, jax.random.key(0), x)
  jaxpr = str(jax.make_jaxpr(module.apply)(variables, x))
  plain = network(conv_general_dilated=jax.lax.conv_general_dilated, **options)
  other = str(jax.make_jaxpr(plain.apply)(variables, x))
  num_convs = other.count("conv_general_dilated[")
  assert num_convs >= 2
  assert jaxpr.count("custom_vjp_call[") == num_convs
  assert "custom_vjp_call[" not in other


def test_seed_network_by_hand():
  module = models.seed_network()
  x = _uniform((2, 28, 28, 1))
  variables = _variables(module, x.shape)
  hidden, out = variables["params"]["Dense_0"], variables["params"]["Dense_1"]
  flat = np.asarray(x).reshape(2, -1)
  units = 1 / (1 + np.exp(-(flat @ hidden["kernel"] + hidden["bias"])))
  np.testing.assert_allclose(
    module.apply(variables, x),
    units @ out["kernel"] + out["bias"],
    rtol=1e-4,
    atol=1e-5,
  )


def test_small_cnn_drops_out_in_training_only():
  module = models.SmallCNN()
  x = jnp.zeros((2, 16, 16, 1))
  variables = _variables(module, x.shape)

  def text(train):
    def apply_fn(key):
      return module.apply(variables, x, train=train, rngs={"dropout": key})

    return str(jax.make_jaxpr(apply_fn)(jax.random.key(0)))

  assert "random_bits" in text(True) and "random_bits" not in text(False)


@every_residual
def test_inputs_are_normalised_per_channel(network, options, shape):
  x = _uniform(shape)
  mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
  np.testing.assert_allclose(
    residual.normalise(x, mean, std),
    (np.asarray(x) - np.array(mean)) / np.array(std),
    rtol=1e-4,
    atol=1e-5,
  )
  module = network(mean=mean, std=std, **options)
  with pytest.raises(ValueError, match="channels"):
    jax.eval_shape(module.init, jax.random.key(0), x[..., :1])


@every_residual
def test_training_uses_batch_statistics(network, options, shape):
  x = _uniform(shape)
  module = network(**options)
  variables = _variables(module, shape)
  _, updates = jax.jit(
    lambda x: module.apply(variables, x, train=True, mutable=["batch_stats"])
  )(x)
  before, after = (
    tree["batch_stats"]["Block_0"]["BatchNorm_0"]["mean"]
    for tree in (variables, updates)
  )
  assert np.all(np.asarray(before) != after)
  assert np.abs(after - 0.9 * before).max() < 0.2 * np.abs(before).max() + 0.2


def test_residual_kernels_start_as_he_normal_fan_out():
  conv, _ = residual.layers(jnp.float32, models.conv_general_dilated, False)
  variables = conv(64, (3, 3)).init(jax.random.key(0), jnp.zeros((1, 4, 4, 32)))
  assert list(variables["params"]) == ["kernel"]
  kernel = variables["params"]["kernel"]
  np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (9 * 64)), rtol=0.02)
  assert np.abs(kernel).max() > 3 * kernel.std()


def test_wide_resnet_names_a_wrong_depth():
  with pytest.raises(ValueError, match="depth must be 10, 16, 22"):
    module = models.WideResNet(depth=11)
    jax.eval_shape(module.init, jax.random.key(0), jnp.zeros(COLOUR))


def test_bounded_relu():
  x = jnp.array([-1.0, 0.0, 0.5, 1.0, 2.0])
  np.testing.assert_array_equal(models.bounded_relu(x), [0, 0, 0.5, 1, 1])
  np.testing.assert_array_equal(
    models.bounded_relu(x, bound=0.25), [0, 0, 0.25, 0.25, 0.25]
  )
  gradient = jax.vmap(jax.grad(models.bounded_relu))(x)
  np.testing.assert_array_equal(gradient, [0, 0, 1, 0, 0])
  assert models.bounded_relu(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
