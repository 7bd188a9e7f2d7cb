"""Many draws and many classes are asked about in parts, with equal answers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import losses, models, oracles


def _wide(variables, keys, x):
  """A network with activations much larger than its input."""
  noise = jax.vmap(lambda key: jax.random.normal(key, (64,)))(keys)
  hidden = jnp.tanh(x.reshape(len(x), -1) @ variables["w"])
  hidden = jnp.tanh(hidden @ variables["v"] + noise @ variables["n"])
  return hidden @ variables["out"]


def _wide_model(num_classes=3):
  rng = np.random.default_rng(0)
  shapes = {"w": (4, 256), "v": (256, 256), "n": (64, 256)}
  shapes["out"] = (256, num_classes)
  return models.bind_stochastic(
    _wide,
    {
      name: jnp.asarray(rng.normal(size=shape) / 8, jnp.float32)
      for name, shape in shapes.items()
    },
  )


def _many(num_rows=256):
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.uniform(size=(num_rows, 2, 2, 1)), jnp.float32)
  y = jnp.asarray(rng.integers(0, 3, num_rows))
  return jax.random.split(jax.random.key(1), num_rows), x, y


def _loss_and_gradient(model, keys, x, y):
  return oracles.loss_and_gradient(model, losses.cross_entropy, keys, x, y)


def _gradients(model, keys, x, y):
  def losses_fn(logits, y):
    return jnp.stack([losses.cross_entropy(logits, y), logits[0]])

  return oracles.gradients(model, losses_fn, keys, x, y)


def _jacobian(model, keys, x, y):
  del y
  return oracles.jacobian(model, keys, x, lambda logits: jnp.arange(3))


def _redirected(model, keys, x, y):
  rows = jnp.arange(len(x)) % 2 == 0
  model = oracles.redirected(model, rows, jnp.zeros_like(x))
  return _loss_and_gradient(model, keys, x, y)


_QUESTIONS = [_loss_and_gradient, _gradients, _jacobian, _redirected]


def _bytes(fun, *arguments) -> int:
  compiled = jax.jit(fun).lower(*arguments).compile()
  return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("question", _QUESTIONS)
def test_many_draws_take_the_memory_of_few(question):
  def ask(num_samples, keys, x, y):
    return question(oracles.Sampled(_wide_model(), num_samples), keys, x, y)

  few, many = (
    _bytes(functools.partial(ask, num_samples), *_many())
    for num_samples in (2, 16)
  )
  assert many < 1.5 * few


@pytest.mark.parametrize("question", _QUESTIONS)
def test_draws_in_parts_are_those_at_once(question):
  """Rows are independent, so a few of them, asked at once, have to agree."""
  model = oracles.Sampled(_wide_model(), 5)
  keys, x, y = _many(100)
  whole = question(model, keys, x, y)
  few = question(model, keys[:4], x[:4], y[:4])

  def compare(left, right):
    left = left[:, :4] if left.shape[0] == 5 else left[:4]
    np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-6)

  jax.tree.map(compare, whole, few)


def test_many_classes_take_the_memory_of_few():
  def ask(num_classes, keys, x, y):
    del y
    model = _wide_model(100)
    answer = oracles.jacobian(
      model, keys, x, lambda logits: jnp.arange(num_classes)
    )
    return answer.grads

  def losses_of(num_losses, keys, x, y):
    model = _wide_model(100)
    answer = oracles.gradients(
      model, lambda logits, y: logits[:num_losses], keys, x, y
    )
    return answer.grad

  for fun in (ask, losses_of):
    few, many = (_bytes(functools.partial(fun, n), *_many()) for n in (10, 100))
    assert many < 2 * few
    some, every = (fun(n, *_many(4)) for n in (7, 100))
    np.testing.assert_allclose(every[:, :7], some, rtol=1e-4, atol=1e-6)
