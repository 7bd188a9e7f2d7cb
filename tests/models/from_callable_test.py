import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import linear_model

from jaxadv import models

KEYS = jax.random.split(jax.random.key(0), 6)
RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(size=(6, 4, 2)).astype(np.float32)


@pytest.fixture(scope="module")
def victim():
  features = np.random.default_rng(1).normal(size=(60, 8))
  labels = np.argmax(features[:, :3], axis=1)
  return linear_model.LogisticRegression().fit(features, labels)


@pytest.fixture(scope="module")
def scores_fn(victim):
  return lambda x: victim.decision_function(x.reshape(len(x), -1))


def test_agrees_with_scikit_learn_eagerly_and_under_jit(victim, scores_fn):
  logits_fn = models.from_callable(scores_fn, 3)
  for call in (logits_fn, jax.jit(logits_fn)):
    logits = call(KEYS, IMAGES)
    assert logits.shape == (6, 3) and logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, scores_fn(IMAGES), rtol=1e-4)
  predicted = victim.classes_[np.argmax(logits, axis=1)]
  np.testing.assert_array_equal(
    predicted, victim.predict(IMAGES.reshape(6, -1))
  )


def test_inside_a_while_loop_as_an_argument(scores_fn):
  logits_fn = models.from_callable(scores_fn, 3)

  @jax.jit
  def search(logits_fn, x):
    def body(carry):
      i, x = carry
      return i + 1, x + 0.1 * logits_fn(KEYS, x).mean()

    return jax.lax.while_loop(lambda carry: carry[0] < 3, body, (0, x))[1]

  expected = IMAGES
  for _ in range(3):
    expected = expected + 0.1 * scores_fn(expected).mean()
  np.testing.assert_allclose(search(logits_fn, IMAGES), expected, rtol=1e-4)


def test_equal_by_function_so_that_jit_does_not_retrace(scores_fn):
  traces = []

  @jax.jit
  def call(logits_fn, x):
    traces.append(None)
    return logits_fn(KEYS, x)

  for _ in range(2):
    call(models.from_callable(scores_fn, 3), IMAGES)
  assert len(traces) == 1
  assert jax.tree.leaves(models.from_callable(scores_fn, 3)) == []


def test_vmap_asks_once_for_the_whole_stack(scores_fn):
  asked = []

  def fn(x):
    asked.append(x.shape)
    return scores_fn(x)

  logits_fn = models.from_callable(fn, 3)
  stack = np.stack([[IMAGES, 2 * IMAGES], [-IMAGES, IMAGES], [IMAGES] * 2])
  over_both = jax.vmap(jax.vmap(lambda x: logits_fn(KEYS, x)))
  out = jax.jit(over_both)(stack)
  assert asked == [(36, 4, 2)]
  expected = scores_fn(stack.reshape(36, 4, 2)).reshape(3, 2, 6, 3)
  np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)


def test_large_batches_do_not_block(scores_fn):
  logits_fn = models.from_callable(lambda x: x[:, :3] * 2, 3)
  x = jnp.ones((512, 3072))
  run = jax.jit(
    lambda x: jax.lax.fori_loop(
      0, 3, lambda _, x: x + logits_fn(None, x).mean(), x
    )
  )
  np.testing.assert_allclose(run(x)[0, 0], 27.0, rtol=1e-5)


@pytest.mark.parametrize("wrong", [(6, 2), (6,), (5, 3)])
def test_wrong_shapes_are_named(wrong):
  logits_fn = models.from_callable(lambda x: np.zeros(wrong), 3)
  message = rf"returned an array of shape \({wrong[0]},"
  with pytest.raises(jax.errors.JaxRuntimeError, match=message):
    jax.block_until_ready(logits_fn(KEYS, IMAGES))


def test_num_classes_must_be_positive():
  with pytest.raises(ValueError, match="num_classes"):
    models.from_callable(lambda x: x, 0)


def test_has_no_gradient(scores_fn):
  logits_fn = models.from_callable(scores_fn, 3)
  with pytest.raises(ValueError, match="callback"):
    jax.grad(lambda x: logits_fn(KEYS, x).sum())(IMAGES)
