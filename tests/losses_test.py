"""Losses by hand: values, invariances, gradients where logits tie."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import losses

_Z = jnp.array([2.0, -1.0, 4.0, 3.0, 0.5])
_LABELLED = [losses.cross_entropy, losses.margin, losses.dlr]


def _log_softmax(z):
  z = np.asarray(z, np.float64)
  return z - np.log(np.exp(z).sum())


def test_cross_entropy():
  expected = -_log_softmax(_Z)
  np.testing.assert_allclose(losses.cross_entropy(_Z, 3), expected[3], 1e-6)
  soft = jnp.array([0.1, 0.2, 0.3, 0.4, 0.0])
  np.testing.assert_allclose(
    losses.cross_entropy(_Z, soft), (np.asarray(soft) * expected).sum(), 1e-6
  )
  np.testing.assert_allclose(
    losses.targeted_cross_entropy(_Z, 3), -expected[3], 1e-6
  )


@pytest.mark.parametrize(
  ("label", "expected"), [(2, -1.0), (3, 1.0), (1, 5.0), (0, 2.0)]
)
def test_margin(label, expected):
  assert losses.margin(_Z, label) == expected
  assert losses.targeted_margin(_Z, label) == -expected


def test_margin_of_negative_logits():
  # A mask of zeros instead of -inf would find an other class at 0.
  assert losses.margin(jnp.array([-3.0, -1.0, -2.0]), 1) == -1.0
  assert losses.margin(jnp.array([-3.0, -1.0, -2.0]), 0) == 2.0


@pytest.mark.parametrize(("label", "expected"), [(2, -0.5), (3, 0.5), (1, 2.5)])
def test_dlr(label, expected):
  # z_(1) - z_(3) = 4 - 2.
  np.testing.assert_allclose(losses.dlr(_Z, label), expected, 1e-6)


def test_targeted_dlr():
  # -(z_2 - z_0) / (z_(1) - (z_(3) + z_(4)) / 2) = -2 / (4 - 1.25).
  found = losses.targeted_dlr(_Z, (2, 0))
  np.testing.assert_allclose(found, -2 / 2.75, 1e-6)


def test_dlr_of_few_classes():
  two, three = jnp.array([1.0, 3.0]), jnp.array([1.0, 3.0, 2.5])
  assert losses.dlr(two, 1) == losses.margin(two, 1) == -2.0
  assert losses.targeted_dlr(two, (1, 0)) == -2.0
  np.testing.assert_allclose(losses.dlr(three, 1), -0.5 / 2, 1e-6)
  np.testing.assert_allclose(losses.targeted_dlr(three, (1, 2)), -0.5 / 2, 1e-6)


def test_dlr_ignores_scale_and_shift():
  for loss_fn, y in ((losses.dlr, 1), (losses.targeted_dlr, (1, 3))):
    value = loss_fn(_Z, y)
    np.testing.assert_allclose(loss_fn(1000 * _Z, y), value, rtol=1e-5)
    np.testing.assert_allclose(loss_fn(_Z + 50, y), value, rtol=1e-5)


@pytest.mark.parametrize("loss_fn", [losses.margin, losses.dlr])
@pytest.mark.parametrize("label", range(5))
def test_positive_just_where_misclassified(loss_fn, label):
  assert (loss_fn(_Z, label) > 0) == (label != 2)
  assert (loss_fn(-_Z, label) > 0) == (label != 1)


_TIES = [
  [0.0, 0.0, 0.0, 0.0],
  [1.0, 1.0, 1.0, 0.0],
  [1.0, 1.0, 0.0, 0.0],
  [1e4, -1e4, 0.0, 1e4],
]


@pytest.mark.parametrize("z", _TIES)
@pytest.mark.parametrize("loss_fn", [*_LABELLED, losses.targeted_margin])
def test_gradients_are_finite_at_ties(loss_fn, z):
  for label in range(4):
    value, grad = jax.value_and_grad(loss_fn)(jnp.array(z), label)
    assert np.isfinite(value) and np.isfinite(grad).all()


@pytest.mark.parametrize("z", _TIES)
def test_targeted_dlr_gradients_are_finite_at_ties(z):
  value, grad = jax.value_and_grad(losses.targeted_dlr)(jnp.array(z), (0, 2))
  assert np.isfinite(value) and np.isfinite(grad).all()


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("z", _TIES[:3])
def test_dlr_is_finite_at_ties_in_half_precision(z, dtype):
  logits = jnp.array(z, dtype)
  for loss_fn, y in ((losses.dlr, 0), (losses.targeted_dlr, (0, 2))):
    value, grad = jax.value_and_grad(loss_fn)(logits, y)
    assert np.isfinite(value) and np.isfinite(grad).all()


def test_dlr_does_not_saturate_where_cross_entropy_does():
  z = 1e4 * _Z
  assert not jax.grad(losses.cross_entropy)(z, 2).any()
  assert jax.grad(losses.dlr)(z, 2).any()


def test_kl_divergence():
  p = np.array([0.5, 0.25, 0.25, 0.0, 0.0])
  expected = (p[:3] * (np.log(p[:3]) - _log_softmax(_Z)[:3])).sum()
  found = losses.kl_divergence(_Z, jnp.asarray(p, jnp.float32))
  np.testing.assert_allclose(found, expected, 1e-5)
  same = jax.nn.softmax(_Z)
  np.testing.assert_allclose(losses.kl_divergence(_Z, same), 0.0, atol=1e-6)


def test_squared_error():
  goal = jnp.array([0.0, 0.0, 0.0, 1.0, 0.0])
  outputs = np.exp(_log_softmax(_Z))
  np.testing.assert_allclose(
    losses.squared_error()(_Z, goal), -0.5 * ((goal - outputs) ** 2).sum(), 1e-5
  )
  sigmoid = 1 / (1 + np.exp(-np.asarray(_Z)))
  np.testing.assert_allclose(
    losses.squared_error(jax.nn.sigmoid)(_Z, goal),
    -0.5 * ((goal - sigmoid) ** 2).sum(),
    1e-5,
  )
  # Equal, so that the program compiled for one serves the other.
  assert losses.squared_error() == losses.squared_error()
  assert losses.squared_error() != losses.squared_error(jax.nn.sigmoid)


def test_difference():
  z = jnp.asarray([1.0, 4.0, -2.0])
  assert losses.difference(z, (1, 2)) == -6.0
  assert losses.difference(z, (2, 0)) == 3.0


def test_jitter_by_hand():
  key = jax.random.key(0)
  z = jnp.asarray([2.0, -4.0, 1.0])
  # Scaled to 10 at most in magnitude: 5, -10, 2.5.
  e = np.exp([5.0, -10.0, 2.5])
  p = e / e.sum()
  quiet = losses.jitter(noise=0.0)(z, (1, key))
  np.testing.assert_allclose(
    quiet, np.sqrt(p[0] ** 2 + (p[1] - 1) ** 2 + p[2] ** 2), rtol=1e-5
  )
  noise = 0.1 * np.asarray(jax.random.normal(key, (3,)))
  np.testing.assert_allclose(
    losses.jitter()(z, (1, key)),
    np.linalg.norm(p + noise - np.array([0.0, 1.0, 0.0])),
    rtol=1e-5,
  )
  assert losses.jitter()(z, (1, key)) != losses.jitter()(
    z, (1, jax.random.key(1))
  )


def test_jitter_ignores_the_scale_and_bears_logits_of_zero():
  z, y = jnp.asarray([2.0, -4.0, 1.0]), (0, jax.random.key(0))
  loss_fn = losses.jitter()
  np.testing.assert_allclose(loss_fn(1e6 * z, y), loss_fn(z, y), rtol=1e-5)
  value, slope = jax.value_and_grad(loss_fn)(jnp.zeros(3), y)
  assert np.isfinite(value) and np.isfinite(slope).all()


def test_jitter_refuses_senseless_options():
  with pytest.raises(ValueError, match="scale must be > 0"):
    losses.jitter(scale=-1.0)
  with pytest.raises(ValueError, match="noise must be >= 0"):
    losses.jitter(noise=-0.1)
