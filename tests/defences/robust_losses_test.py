"""Every robust loss against its formula in NumPy, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv.defences import robust_losses, training

_CLEAN = np.array([2.0, -1.0, 0.5])
_ADV = np.array([0.5, 1.0, -0.5])
_LABEL = jnp.int32(0)


def _softmax(z):
  e = np.exp(z - z.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


_P, _Q = _softmax(_CLEAN), _softmax(_ADV)
_KL = float(np.sum(_P * np.log(_P / _Q)))


def _value(robust_loss, clean=_CLEAN, adv=_ADV, y=_LABEL):
  arrays = (jnp.asarray(clean, jnp.float32), jnp.asarray(adv, jnp.float32))
  return float(robust_loss.loss_fn(*arrays, y))


def test_mixture():
  expected = -0.3 * np.log(_P[0]) - 0.7 * np.log(_Q[0])
  assert _value(robust_losses.mixture(0.3)) == pytest.approx(expected)
  assert _value(robust_losses.mixture()) == pytest.approx(
    -0.5 * np.log(_P[0] * _Q[0])
  )


def test_trades_measures_from_the_clean_prediction():
  expected = -np.log(_P[0]) + 6.0 * _KL
  assert _value(robust_losses.trades()) == pytest.approx(expected)
  # The other direction is another number.
  assert abs(_KL - np.sum(_Q * np.log(_Q / _P))) > 0.01


def test_trades_differentiates_both_sides():
  loss_fn = robust_losses.trades(6.0).loss_fn
  clean, adv = (jnp.asarray(z, jnp.float32) for z in (_CLEAN, _ADV))
  to_clean, to_adv = jax.grad(loss_fn, argnums=(0, 1))(clean, adv, _LABEL)
  one_hot = np.eye(3)[0]
  # d KL / dz = p (log p/q - KL), d KL / dz' = q - p.
  of_kl = _P * (np.log(_P / _Q) - _KL)
  np.testing.assert_allclose(to_clean, _P - one_hot + 6 * of_kl, rtol=1e-4)
  np.testing.assert_allclose(to_adv, 6 * (_Q - _P), rtol=1e-4)


def test_mart():
  wrong = max(_Q[1], _Q[2])
  bce = -np.log(_Q[0]) - np.log(1.0001 - wrong + 1e-12)
  expected = bce + 6.0 * _KL * (1.0000001 - _P[0])
  assert _value(robust_losses.mart()) == pytest.approx(expected, rel=1e-5)
  # The best wrong class is that of the adversarial logits, label or not.
  label = jnp.int32(1)
  bce = -np.log(_Q[1]) - np.log(1.0001 - _Q[0] + 1e-12)
  expected = bce + 2.0 * _KL * (1.0000001 - _P[1])
  assert _value(robust_losses.mart(2.0), y=label) == pytest.approx(
    expected, rel=1e-5
  )


def test_mart_is_finite_where_the_attack_has_won_for_certain():
  adv = np.array([-200.0, 0.0, -200.0])
  gradient = jax.grad(robust_losses.mart().loss_fn, argnums=(0, 1))(
    jnp.asarray(_CLEAN, jnp.float32), jnp.asarray(adv, jnp.float32), _LABEL
  )
  assert np.isfinite(np.concatenate(gradient)).all()


def test_logit_pairing():
  expected = -0.5 * np.log(_P[0] * _Q[0])
  expected += 0.5 * np.mean((_CLEAN - _ADV) ** 2)
  assert _value(robust_losses.logit_pairing()) == pytest.approx(expected)


def test_logit_squeezing():
  robust_loss = robust_losses.logit_squeezing(0.5)
  expected = -np.log(_P[0]) + 0.5 * np.linalg.norm(_CLEAN)
  assert _value(robust_loss) == pytest.approx(expected)
  assert not robust_loss.adversarial
  gradient = jax.grad(robust_loss.loss_fn)(jnp.zeros(3), None, _LABEL)
  np.testing.assert_allclose(gradient, [1 / 3 - 1, 1 / 3, 1 / 3], rtol=1e-6)


def test_soft_labels():
  y = jnp.array([0.7, 0.2, 0.1])
  cross_entropy = lambda p: -np.sum(np.asarray(y) * np.log(p))
  assert _value(robust_losses.trades(2.0), y=y) == pytest.approx(
    cross_entropy(_P) + 2 * _KL
  )
  for robust_loss in (robust_losses.mart(), robust_losses.adp()):
    with pytest.raises(ValueError, match=r"needs integer labels.*\(3,\)"):
      _value(robust_loss, y=y)


def _adp_by_hand(members, label, alpha, beta):
  p = _softmax(members)
  mean = p.mean(0)
  entropy = -np.sum(mean * np.log(mean))
  wrong = np.delete(p, label, axis=1)
  wrong /= np.linalg.norm(wrong, axis=1, keepdims=True)
  gram = wrong @ wrong.T + 1e-6 * np.eye(len(p))
  fit = -np.log(p[:, label]).sum()
  return fit - alpha * entropy - beta * np.log(np.linalg.det(gram))


def test_adp():
  members = np.random.default_rng(0).normal(size=(3, 5))
  assert _value(robust_losses.adp(), members, y=jnp.int32(2)) == pytest.approx(
    _adp_by_hand(members, 2, 2.0, 0.5), rel=1e-4
  )


def test_adp_is_finite_for_certain_and_for_equal_members():
  loss_fn = robust_losses.adp().loss_fn
  for members in (np.tile([150.0, 0.0, 0.0, 0.0], (2, 1)), np.zeros((2, 4))):
    value, gradient = jax.value_and_grad(loss_fn)(
      jnp.asarray(members, jnp.float32), None, _LABEL
    )
    assert np.isfinite(value) and np.isfinite(gradient).all()


@pytest.mark.parametrize(
  ("make", "words"),
  [
    (lambda: robust_losses.mixture(1.5), "alpha must be <= 1"),
    (lambda: robust_losses.mixture(-0.5), "alpha must be >= 0"),
    (lambda: robust_losses.trades(-1.0), "beta must be >= 0"),
    (lambda: robust_losses.mart(-1.0), "beta must be >= 0"),
    (lambda: robust_losses.logit_pairing(-1.0), "weight must be >= 0"),
    (lambda: robust_losses.logit_squeezing(-1.0), "weight must be >= 0"),
    (lambda: robust_losses.adp(beta=-1.0), "beta must be >= 0"),
  ],
)
def test_refuses_weights_out_of_range(make, words):
  with pytest.raises(ValueError, match=words):
    make()


def test_says_which_passes_it_needs():
  assert robust_losses.trades()[1:3] == (True, True)
  assert robust_losses.adp()[1:3] == (True, False)
  assert training.madry[1:3] == (False, True)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_logits_have_the_losses_of_float32(dtype):
  certain = np.array([30.0, -30.0, 0.0])
  members = jnp.asarray([certain, certain[::-1]])
  for loss, clean, adv in (
    (robust_losses.mart(), certain, -certain),
    (robust_losses.adp(), members, None),
  ):
    half = [None if z is None else jnp.asarray(z, dtype) for z in (clean, adv)]
    full = [None if z is None else jnp.asarray(z) for z in (clean, adv)]
    found = loss.loss_fn(*half, _LABEL)
    assert np.isfinite(found) and found == loss.loss_fn(*full, _LABEL)
