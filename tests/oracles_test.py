"""One question for a batch: gradients, samples, questions redirected."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import criteria, losses, models, oracles
from tests import victims

_KEYS = jax.random.split(jax.random.key(0), 3)
_X = np.random.default_rng(0).uniform(size=(3, 2, 2, 1)).astype(np.float32)
_Y = jnp.array([0, 1, 2])
_W = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)


def _linear():
  return victims.linear(_W, np.zeros(3))


def _gradient(x, y):
  z = np.asarray(x, np.float64).reshape(-1) @ _W
  p = np.exp(z) / np.exp(z).sum()
  return (_W @ (p - np.eye(3)[y])).reshape(x.shape)


def test_loss_and_gradient_are_those_of_each_row():
  """The sum over rows, not their mean: the batch size changes nothing."""
  answer = oracles.loss_and_gradient(
    _linear(), losses.cross_entropy, _KEYS, _X, _Y
  )
  logits = victims.logits(_linear(), _X)
  np.testing.assert_allclose(answer.outputs, logits, rtol=1e-6)
  for i in range(3):
    np.testing.assert_allclose(
      answer.grad[i], _gradient(_X[i], i), rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(
      answer.loss[i], losses.cross_entropy(jnp.asarray(logits[i]), i), rtol=1e-5
    )


def _margin_and_cross_entropy(logits, y):
  return jnp.stack([losses.margin(logits, y), losses.cross_entropy(logits, y)])


def test_several_losses_have_the_gradients_of_each_alone():
  for logits_fn in (_linear(), oracles.Sampled(_linear(), 2)):
    both = oracles.gradients(
      logits_fn, _margin_and_cross_entropy, _KEYS, _X, _Y
    )
    assert both.grad.shape == (3, 2, *_X.shape[1:])
    for k, loss_fn in enumerate((losses.margin, losses.cross_entropy)):
      one = oracles.loss_and_gradient(logits_fn, loss_fn, _KEYS, _X, _Y)
      np.testing.assert_allclose(both.loss[:, k], one.loss, rtol=1e-6)
      np.testing.assert_allclose(both.grad[:, k], one.grad, atol=1e-6)


def _half_nan(variables, x):
  flat = x.reshape(len(x), -1)
  return variables * jnp.stack([jnp.sqrt(flat[:, 0] * 0), flat[:, 1]], axis=1)


def test_only_the_entries_that_are_not_finite_count_as_zero():
  logits_fn = models.bind(_half_nan, jnp.ones(()))
  answer = oracles.loss_and_gradient(
    logits_fn, losses.cross_entropy, _KEYS, _X, jnp.zeros(3, int)
  )
  grad = answer.grad.reshape(3, 4)
  assert (grad[:, 0] == 0).all() and (grad[:, 1] > 0).all()


def _both(logits):
  return jnp.arange(logits.shape[0])


def test_jacobian_of_each_row():
  answer = oracles.jacobian(_linear(), _KEYS, _X, _both)
  np.testing.assert_allclose(
    answer.logits, victims.logits(_linear(), _X), rtol=1e-6
  )
  slopes = np.broadcast_to(_W.T.reshape(3, 2, 2, 1), (3, 3, 2, 2, 1))
  np.testing.assert_allclose(answer.grads, slopes, rtol=1e-6)


def test_jacobian_of_draws_is_that_of_their_mean_probabilities():
  """So its boundaries are those of the criterion."""
  model = oracles.Sampled(victims.stochastic(4, 3), 5)

  def log_mean(x):
    draws = jax.nn.softmax(model(_KEYS, x).outputs)
    return jnp.log(jnp.mean(draws, axis=0))

  answer = oracles.jacobian(model, _KEYS, jnp.asarray(_X), _both)
  np.testing.assert_allclose(answer.logits, log_mean(_X), rtol=1e-5)
  for k in range(3):
    slope = jax.grad(lambda x, k=k: jnp.sum(log_mean(x)[:, k]))(_X)
    np.testing.assert_allclose(answer.grads[:, k], slope, atol=1e-5)


def test_likeliest_wrong_classes_in_order():
  logits = jnp.asarray([[1.0, 4.0, 2.0, 3.0], [9.0, 0.0, 1.0, -5.0]])
  found = oracles.likeliest_wrong(logits, jnp.array([1, 2]), 3)
  np.testing.assert_array_equal(found, [[3, 2, 0], [0, 1, 3]])
  with pytest.raises(ValueError, match="num_targets must be at most 3"):
    oracles.likeliest_wrong(logits, jnp.array([1, 2]), 4)


def test_a_tuple_of_targets_and_outputs_is_welcome():
  pair = oracles.loss_and_gradient(
    _linear(), losses.targeted_dlr, _KEYS, _X, (_Y, (_Y + 1) % 3)
  )
  assert pair.loss.shape == (3,) and pair.grad.shape == _X.shape
  won = oracles.satisfied(criteria.misclassified_pair, pair.outputs, (_Y, _Y))
  best = np.asarray(pair.outputs).argmax(axis=1)
  np.testing.assert_array_equal(won, best != np.asarray(_Y))


def _samples():
  rng = np.random.default_rng(0)
  return rng.normal(scale=3, size=(5, 3, 3)).astype(np.float32)


def test_loss_of_samples_is_their_mean_loss():
  z = _samples()
  found = oracles.loss(losses.cross_entropy, oracles.Samples(z), _Y)
  p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
  each = -np.log(p[:, np.arange(3), np.arange(3)])
  np.testing.assert_allclose(found, each.mean(axis=0), rtol=1e-5)


def test_criterion_sees_the_mean_probabilities_of_samples():
  z = _samples()
  p = (np.exp(z) / np.exp(z).sum(-1, keepdims=True)).mean(axis=0)
  mean = oracles.mean_logits(oracles.Samples(z))
  np.testing.assert_allclose(np.exp(mean), p, rtol=1e-5)
  found = oracles.satisfied(criteria.misclassified, oracles.Samples(z), _Y)
  np.testing.assert_array_equal(found, p.argmax(axis=1) != np.arange(3))
  assert not np.array_equal(p.argmax(1), z.mean(axis=0).argmax(axis=1))


def test_choose_picks_rows_of_every_leaf():
  rows = jnp.array([True, False, True])
  new = {"a": jnp.ones((3, 2)), "b": jax.random.split(jax.random.key(1), 3)}
  old = {"a": jnp.zeros((3, 2)), "b": _KEYS}
  chosen = oracles.choose(rows, new, old)
  np.testing.assert_array_equal(chosen["a"], [[1, 1], [0, 0], [1, 1]])
  np.testing.assert_array_equal(
    jax.random.key_data(chosen["b"]),
    np.where(
      np.asarray(rows)[:, None],
      jax.random.key_data(new["b"]),
      jax.random.key_data(old["b"]),
    ),
  )


def test_choose_keeps_the_types_of_what_was_there():
  rows, old = jnp.array([True, False]), jnp.zeros(2, jnp.bfloat16)
  chosen = oracles.choose(rows, jnp.ones(2), old)
  assert chosen.dtype == jnp.bfloat16
  np.testing.assert_array_equal(chosen, [1, 0])


def test_step_keys_differ_between_steps_and_rows():
  data = [
    np.asarray(jax.random.key_data(oracles.step_keys(_KEYS, jnp.full(3, step))))
    for step in (0, 1)
  ]
  assert len(np.unique(np.concatenate(data), axis=0)) == 6


def test_redirected_asks_about_the_point_and_hears_the_answer():
  rows = jnp.array([False, True, False])
  point = 1 - _X
  model = oracles.redirected(_linear(), rows, jnp.asarray(point))
  answer = oracles.outputs(model, _KEYS, jnp.asarray(_X))
  asked = np.where(np.asarray(rows)[:, None, None, None], point, _X)
  expected = victims.logits(_linear(), asked)
  np.testing.assert_allclose(answer, expected, rtol=1e-6)


def test_redirected_and_sampled_nest():
  rows, everywhere = jnp.array([False, True, False]), jnp.ones(3, bool)
  outer = oracles.redirected(_linear(), everywhere, jnp.asarray(1 - _X))
  inner = oracles.redirected(
    oracles.Sampled(outer, 2), rows, jnp.zeros_like(_X)
  )
  answer = oracles.loss_and_gradient(
    inner, losses.cross_entropy, _KEYS, jnp.asarray(_X), _Y
  )
  assert isinstance(answer.outputs, oracles.Samples)
  assert answer.outputs.outputs.shape == (2, 3, 3)
  # The outermost combinator has the last word about what is asked.
  np.testing.assert_allclose(
    answer.outputs.outputs[1], victims.logits(_linear(), 1 - _X), rtol=1e-5
  )
  # A row that was redirected says nothing about the point it was given.
  assert (answer.grad == 0).all()


def test_sampled_draws_fresh_keys_for_each_row_and_sample():
  stochastic = victims.stochastic(4, 3)
  same = jnp.broadcast_to(_X[:1], _X.shape)
  samples = oracles.Sampled(stochastic, 4)(_KEYS, same).outputs
  assert samples.shape == (4, 3, 3)
  flat = np.asarray(samples).reshape(12, 3)
  assert len(np.unique(flat.round(6), axis=0)) == 12
  alone = oracles.Sampled(stochastic, 4)(_KEYS[1:2], same[:1]).outputs
  np.testing.assert_allclose(alone[:, 0], samples[:, 1], rtol=1e-5)


def test_a_query_only_victim_answers_but_has_no_gradient():
  victim = victims.query_only(4, 3)
  assert oracles.outputs(victim, _KEYS, _X).shape == (3, 3)
  with pytest.raises(AssertionError, match="query-only"):
    oracles.loss_and_gradient(victim, losses.cross_entropy, _KEYS, _X, _Y)
