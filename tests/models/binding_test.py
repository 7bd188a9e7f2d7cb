import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxadv import models


def _linear(variables, x):
  return x @ variables


def _noisy(variables, keys, x):
  noise = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(keys)
  return (x + noise) @ variables


def _counted():
  traces = []

  @jax.jit
  def call(logits_fn, keys, x):
    traces.append(None)
    return logits_fn(keys, x)

  return call, traces


def _normal(shape):
  return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


KEYS = jax.random.split(jax.random.key(0), 4)
X = _normal((4, 3))


def test_bind_ignores_keys_and_its_leaves_are_the_weights():
  weights = jnp.ones((3, 2))
  logits_fn = models.bind(_linear, weights)
  np.testing.assert_array_equal(logits_fn(KEYS, X), X @ weights)
  np.testing.assert_array_equal(logits_fn(None, X), X @ weights)
  assert jax.tree.leaves(logits_fn) == [weights]


def test_new_weights_do_not_retrace():
  call, traces = _counted()
  for scale in (1.0, 2.0, 3.0):
    weights = jnp.full((3, 2), scale)
    np.testing.assert_allclose(
      call(models.bind(_linear, weights), KEYS, X), X @ weights, rtol=1e-5
    )
  assert len(traces) == 1


def _params(width, scale=1.0):
  sizes = (3, width, 10)
  return {
    "params": {
      f"Dense_{i}": {
        "kernel": jnp.full(sizes[i : i + 2], scale),
        "bias": jnp.zeros(sizes[i + 1]),
      }
      for i in range(2)
    }
  }


@pytest.mark.parametrize("activation", [nn.relu, models.bounded_relu])
def test_modules_built_twice_do_not_retrace(activation):
  def build(width=5):
    return models.MLP(features=(width,), activation=activation)

  assert build().apply != build().apply  # The trap that `bind` avoids.
  call, traces = _counted()
  for scale in (0.5, 1.0, 2.0):
    hidden = activation(scale * X.sum(axis=1))
    logits = call(models.bind(build().apply, _params(5, scale)), KEYS, X)
    np.testing.assert_allclose(
      logits[:, 0], 5 * scale * hidden, rtol=1e-4, atol=1e-5
    )
  assert len(traces) == 1
  call(models.bind(build(6).apply, _params(6)), KEYS, X)
  assert len(traces) == 2


def test_unhashable_modules_still_bind():
  module = models.MLP(features=[5])
  call, traces = _counted()
  for _ in range(2):
    call(models.bind(module.apply, _params(5)), KEYS, X)
  assert len(traces) == 1


def test_bound_models_stack_under_vmap():
  weights = _normal((5, 3, 2))
  stacked = models.bind(_linear, weights)
  out = jax.vmap(lambda logits_fn: logits_fn(KEYS, X))(stacked)
  np.testing.assert_allclose(
    out, jnp.einsum("bi,sio->sbo", X, weights), rtol=1e-4, atol=1e-5
  )


def test_stochastic_models_get_one_key_per_row():
  weights = jnp.ones((3, 2))
  logits_fn = models.bind_stochastic(_noisy, weights)
  out = logits_fn(KEYS, X)
  assert not np.allclose(out, logits_fn(KEYS[::-1], X))
  np.testing.assert_allclose(out[1:3], logits_fn(KEYS[1:3], X[1:3]), rtol=1e-5)
  call, traces = _counted()
  for scale in (1.0, 2.0):
    call(models.bind_stochastic(_noisy, scale * weights), KEYS, X)
  assert len(traces) == 1
