import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jaxadv import models, train_state


class _Network(nn.Module):
  @nn.compact
  def __call__(self, x, train=False):
    x = x.reshape(len(x), -1)
    x = nn.BatchNorm(use_running_average=not train)(x)
    x = nn.Dropout(0.5, deterministic=not train)(x)
    return nn.Dense(3)(x)


def _create(module, **options):
  key = jax.random.key(0)
  return train_state.create(
    module, optax.sgd(0.1), key, jnp.ones((1, 2, 2, 1)), **options
  )


def test_variables_are_what_the_network_takes():
  plain = _create(models.MLP(features=(), num_classes=3))
  assert set(plain.variables) == {"params"}
  normalised = _create(_Network())
  assert set(normalised.variables) == {"params", "batch_stats"}
  x = jnp.ones((5, 2, 2, 1))
  keys = jax.random.split(jax.random.key(0), 5)
  for state in (plain, normalised):
    logits = state.logits_fn()(keys, x)
    np.testing.assert_array_equal(logits, state.apply_fn(state.variables, x))


def test_the_average_waits_for_the_step_that_moves_the_weights():
  module = models.MLP(features=(), num_classes=3)
  create = lambda optimizer: train_state.create(
    module, optimizer, jax.random.key(0), jnp.ones((1, 2, 2, 1)), ema_decay=0.9
  )
  gathered = optax.MultiSteps(optax.sgd(0.1), 3).gradient_transformation()
  once, parts = create(optax.sgd(0.1)), create(gathered)
  ones = jax.tree.map(jnp.ones_like, once.params)
  for _ in range(2):
    once = once.update(ones, {})
    for part in range(3):
      before = parts.averaged
      parts = parts.update(
        jax.tree.map(lambda g, part=part: g * part, ones), {}
      )
      if part < 2:
        jax.tree.map(np.testing.assert_array_equal, parts.averaged, before)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
      parts.averaged,
      once.averaged,
    )


def test_average_moves_by_the_warmed_up_decay():
  state = _create(models.MLP(features=(), num_classes=3), ema_decay=0.9)
  grads = jax.tree.map(jnp.ones_like, state.params)
  new = state.update(grads, {})
  decay = 2 / 11  # (1 + step) / (10 + step) after the first step.
  expected = jax.tree.map(
    lambda old, now: decay * old + (1 - decay) * now,
    state.variables,
    new.variables,
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
    new.eval_variables,
    expected,
  )
  later = new.replace(step=jnp.int32(10_000)).update(grads, {})
  kernel = lambda tree: tree["params"]["Dense_0"]["kernel"]
  np.testing.assert_allclose(
    kernel(later.averaged),
    0.9 * kernel(new.averaged) + 0.1 * kernel(later.variables),
    rtol=1e-5,
  )


def test_without_average_the_weights_are_evaluated():
  state = _create(models.MLP(features=(), num_classes=3))
  assert state.averaged is None
  assert state.eval_variables["params"] is state.params


def test_state_can_be_donated():
  state = _create(_Network(), ema_decay=0.9)
  step = jax.jit(
    lambda s: s.update(jax.tree.map(jnp.ones_like, s.params), s.batch_stats),
    donate_argnums=0,
  )
  assert int(step(step(state)).step) == 2


@pytest.mark.parametrize("ema_decay", [-0.1, 1.0])
def test_refuses_a_decay_that_is_none(ema_decay):
  with pytest.raises(ValueError, match="ema_decay"):
    _create(_Network(), ema_decay=ema_decay)


def test_training_view_drops_out_and_updates_statistics():
  module = _Network()
  state = _create(module)
  apply_fn = train_state.train_apply(module)
  x = jnp.linspace(0.0, 1.0, 64).reshape(16, 2, 2, 1)
  key = jax.random.key(1)
  logits, stats = apply_fn(state.variables, key, x)
  again, _ = apply_fn(state.variables, key, x)
  other, _ = apply_fn(state.variables, jax.random.key(2), x)
  np.testing.assert_array_equal(logits, again)
  assert np.any(np.asarray(logits) != np.asarray(other))
  moved = 0.01 * np.asarray(x).reshape(16, -1).mean(axis=0)
  np.testing.assert_allclose(stats["BatchNorm_0"]["mean"], moved, rtol=1e-4)
  logits, stats = train_state.train_apply(models.MLP())(
    models.MLP().init(key, x), key, x
  )
  assert stats == {}
