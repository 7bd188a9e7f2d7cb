"""Flags fire where they should, and only there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import losses, models, suspicions
from tests import victims

_KEY = jax.random.key(0)
_X, _Y = victims.blobs(12)
_W = np.random.default_rng(0).normal(size=(25, 4)).astype(np.float32)


def _flat_logits(w, x):
  return x.reshape(len(x), -1) @ w


def _noise(w, keys, x):
  draw = jax.vmap(lambda key: jax.random.normal(key, (4,)))
  return _flat_logits(w, x) + draw(keys)


def _frozen_noise(w, x):
  draw = jax.random.normal(jax.random.key(0), (4,))
  return _flat_logits(w, x) + draw[None]


def _softmax(w, x):
  return jax.nn.softmax(_flat_logits(w, x))


def _rounded(w, x):
  return _flat_logits(w, jnp.round(x))


def _purified(w, x):
  """Climbs its own confidence before it answers, in a loop of fixed length."""

  def confidence(x):
    return jnp.sum(jax.nn.logsumexp(_flat_logits(w, x), axis=1))

  def climb(x, _):
    return x + 0.01 * jax.grad(confidence)(x), None

  return _flat_logits(w, jax.lax.scan(climb, x, None, 3)[0])


def _settled(w, x):
  unsettled = lambda x: jnp.max(x) > 0.5
  return _flat_logits(w, jax.lax.while_loop(unsettled, lambda x: x / 2, x))


@jax.custom_vjp
def _with_its_own_gradient(x):
  return 2 * x


_with_its_own_gradient.defvjp(lambda x: (2 * x, None), lambda _, g: (2 * g,))


def _deep(w, x):
  """Loops of fixed length and `custom_vjp`, as in many a network."""

  def layer(x, _):
    return jnp.tanh(_with_its_own_gradient(x)), None

  x = jax.lax.scan(layer, x, None, 3)[0]
  x = jax.lax.fori_loop(0, 2, lambda _, x: x * 0.5, x)
  return _flat_logits(w, x.swapaxes(1, 2))


def _randomised(logits_fn):
  return suspicions.randomised(logits_fn, _KEY, _X, batch_size=8)


def test_randomised_models():
  assert "differ" in _randomised(models.bind_stochastic(_noise, _W))[0]
  # No draw of JAX's own, but the outputs tell.
  assert "differ" in _randomised(victims.stochastic(25, 4))[0]
  assert "frozen" in _randomised(models.bind(_frozen_noise, _W))[0]
  assert _randomised(models.bind(_deep, _W)) == ()
  assert _randomised(victims.trained()) == ()


def test_softmax_outputs():
  def messages(apply_fn):
    return suspicions.softmax_output(np.asarray(apply_fn(_W, jnp.asarray(_X))))

  assert "probabilities" in messages(_softmax)[0]
  assert messages(_flat_logits) == ()
  log_softmax = lambda w, x: jax.nn.log_softmax(_flat_logits(w, x))
  assert messages(log_softmax) == ()


def _zero_gradients(logits_fn, x=_X, y=_Y):
  return suspicions.zero_gradients(logits_fn, _KEY, x, y, batch_size=8)


def test_zero_gradients():
  assert _zero_gradients(victims.trained()) == ()
  for blind in (
    models.bind(_rounded, _W),
    victims.constant(25, 4),
    victims.nan_gradient(25, 4),
  ):
    messages = _zero_gradients(blind, 0 * _X)
    assert len(messages) == 2
    assert "cross-entropy is zero for 100.0%" in messages[0]
    assert "DLR is zero for 100.0%" in messages[1]


def test_saturation_is_blind_for_cross_entropy_alone():
  logits_fn = victims.saturated(25, 4)
  y = victims.logits(logits_fn, _X).argmax(1).astype(np.int32)
  (message,) = _zero_gradients(logits_fn, _X, y)
  assert "cross-entropy is zero for 100.0%" in message


def test_shares_count_examples():
  """One of four is right, and told apart by nothing: its label leads by far."""
  logits_fn = models.bind(_flat_logits, 100.0 * _W)
  logits = victims.logits(logits_fn, _X[:4])
  worst = logits.argmin(axis=1)
  y = np.where(np.arange(4) == 2, logits.argmax(axis=1), worst)
  (message,) = _zero_gradients(logits_fn, _X[:4], y.astype(np.int32))
  assert "cross-entropy is zero for 100.0%" in message


@pytest.mark.parametrize(
  ("after", "blind", "fires"),
  [
    ({"clean": 0.9, "pgd": 0.5, "square": 0.49}, {"square"}, True),
    ({"clean": 0.9, "pgd": 0.5, "square": 0.499}, {"square"}, False),
    # Nothing to compare with.
    ({"clean": 0.9, "square": 0.4, "pgd": 0.3}, {"square"}, False),
    ({"clean": 0.9, "pgd": 0.4, "cw": 0.3}, set(), False),
    # Also where attacks with gradients follow.
    ({"clean": 0.9, "pgd": 0.5, "square": 0.4, "fab": 0.3}, {"square"}, True),
    ({"clean": 0.0, "pgd": 0.0, "square": 0.0}, {"square"}, False),
  ],
)
def test_queries_win(after, blind, fires):
  assert bool(suspicions.queries_win(after, blind)) == fires


@pytest.mark.parametrize(("num_classes", "fires"), [(2, 1), (3, 1), (4, 0)])
def test_few_classes(num_classes, fires):
  messages = suspicions.few_classes(num_classes)
  assert len(messages) == fires
  assert all(f"{num_classes} classes" in message for message in messages)
  # What the message says: below four the loss is another one.
  logits = np.arange(num_classes, dtype=np.float32)
  assert np.isfinite(losses.targeted_dlr(logits, (0, 1)))


def test_optimisation_at_test_time():
  def messages(apply_fn):
    return suspicions.optimises(models.bind(apply_fn, _W), _X)

  assert "a gradient" in messages(_purified)[0]
  assert "open length" in messages(_settled)[0]
  for usual in (_deep, _flat_logits, _softmax, _frozen_noise):
    assert messages(usual) == ()


def test_our_networks_raise_no_suspicion():
  net = models.StridedCNN(num_classes=4)
  images = np.pad(_X, ((0, 0), (0, 3), (0, 3), (0, 0)))
  variables = net.init(_KEY, jnp.asarray(images))
  logits_fn = models.bind(net.apply, variables)
  assert suspicions.optimises(logits_fn, images) == ()
  assert suspicions.randomised(logits_fn, _KEY, images, batch_size=12) == ()


def test_of_outputs_gathers():
  def messages(apply_fn, w):
    return suspicions.of_outputs(
      models.bind(apply_fn, w), _KEY, _X, batch_size=8
    )

  assert messages(_flat_logits, _W) == ()
  assert len(messages(_softmax, _W[:, :3])) == 2


def test_zero_gradients_of_misclassified_inputs_are_no_sign():
  """DLR is constant wherever the label is third, as it may well be there."""
  logits_fn = victims.ordinary(25, 4)
  x = np.random.default_rng(5).uniform(size=(40, 5, 5, 1)).astype(np.float32)
  order = np.argsort(victims.logits(logits_fn, x), axis=1)
  labels = order[:, -1].astype(np.int32)
  labels[:20] = order[:20, -3]
  assert _zero_gradients(logits_fn, x, labels) == ()
  assert _zero_gradients(logits_fn, x[:20], labels[:20]) == ()
  blind = victims.constant(25, 4)
  right = np.zeros(40, np.int32) + victims.logits(blind, x).argmax(1)
  messages = _zero_gradients(blind, x, right.astype(np.int32))
  assert len(messages) == 2 and "100.0%" in messages[0]


def test_the_number_of_right_inputs_compiles_nothing():
  logits_fn = victims.ordinary(25, 4)
  x = np.random.default_rng(6).uniform(size=(40, 5, 5, 1)).astype(np.float32)
  best = victims.logits(logits_fn, x).argmax(axis=1).astype(np.int32)
  assert _zero_gradients(logits_fn, x, best) == ()
  before = victims.CALLS["mixed"]
  for number in (1, 7, 39):
    labels = np.where(np.arange(40) < number, best, (best + 1) % 4)
    assert _zero_gradients(logits_fn, x, labels.astype(np.int32)) == ()
  assert victims.CALLS["mixed"] == before


def test_outputs_that_are_no_numbers_are_a_sign():
  logits = np.array([[0.0, 1.0], [np.nan, 1.0], [0.0, np.inf], [1.0, -np.inf]])
  (message,) = suspicions.not_finite(logits, "clean inputs")
  assert "not finite for 50.0% of the clean inputs" in message
  assert suspicions.not_finite(logits[::3], "clean inputs") == ()
