import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import attacks, balls, criteria, engine
from jaxadv.defences import null_class
from tests import victims

_LABEL = jnp.int32(0)
_CLEAN, _ADV = np.array([2.0, -1.0, 0.5]), np.array([0.5, 1.0, -0.5])


def _softmax(z):
  return np.exp(z) / np.exp(z).sum()


def test_outcomes():
  logits = np.eye(4)[[0, 1, 3, 3, 2, 3]]
  labels = np.array([0, 2, 1, 3, 2, 0])
  found = null_class.outcomes(logits, labels)
  # Right: 0, the outlier labelled null, 2. Rejected: two. Wrong: one.
  np.testing.assert_allclose(found, [3 / 6, 2 / 6, 1 / 6])


def test_what_is_no_number_is_neither_right_nor_a_rejection():
  logits = np.array([[np.nan, 0, 0], [0, 1, np.nan], [0, 0, np.inf]])
  found = null_class.outcomes(logits, np.array([0, 0, 0]))
  np.testing.assert_allclose(found, [0.0, 0.0, 1.0])


@pytest.mark.parametrize(
  ("logits", "fooled", "margin"),
  [
    ([3.0, 1.0, 0.0, 2.0], False, -2.0),
    ([1.0, 3.0, 0.0, 2.0], True, 1.0),
    ([1.0, 2.0, 0.0, 3.0], False, -1.0),
    ([1.0, 0.0, 5.0, 4.0], True, 1.0),
  ],
)
def test_a_rejection_is_no_success(logits, fooled, margin):
  logits = jnp.asarray(logits)
  assert bool(null_class.fooled(logits, _LABEL)) == fooled
  assert float(null_class.wrong_margin(logits, _LABEL)) == margin


def test_the_margin_differentiates_to_the_two_logits():
  slope = jax.grad(null_class.wrong_margin)(
    jnp.array([1.0, 2.0, 0.0, 3.0]), _LABEL
  )
  np.testing.assert_array_equal(slope, [0.0, 1.0, 0.0, -1.0])


def test_the_loss_moves_the_label_to_null_with_the_perturbation():
  robust_loss = null_class.robust_loss(balls.Linf(0.4))
  x = jnp.array([0.5, 0.5])
  for size, q in ((0.0, 0.0), (0.1, 0.25), (0.4, 1.0)):
    x_adv = x + jnp.array([size, -0.5 * size])
    y = robust_loss.target_fn(x, x_adv, _LABEL)
    clean, adv = (jnp.asarray(z, jnp.float32) for z in (_CLEAN, _ADV))
    p, p_adv = _softmax(_CLEAN), _softmax(_ADV)
    expected = -np.log(p[0])
    expected -= (1 - q) * np.log(p_adv[0]) + q * np.log(p_adv[2])
    found = float(robust_loss.loss_fn(clean, adv, y))
    assert found == pytest.approx(0.5 * expected, rel=1e-5)


def test_any_size_keeps_a_uniform_share_of_the_perturbation():
  ball = balls.Linf(0.1)
  attack = null_class.any_size(attacks.fgsm(ball, criterion=criteria.never))
  victim = victims.binary(np.array([1.0, -1.0]), -0.3)
  x = jnp.full((200, 2), 0.5)
  delta = (
    engine.run(attack, victim, jax.random.key(0), x, jnp.zeros(200, jnp.int32))
    - x
  )
  share = np.asarray(delta[:, 0]) / 0.1
  np.testing.assert_allclose(delta[:, 1], -delta[:, 0], atol=1e-6)
  assert share.min() >= 0 and share.max() <= 1 + 1e-5
  assert share.mean() == pytest.approx(0.5, abs=0.08)
  assert share.std() == pytest.approx(1 / np.sqrt(12), abs=0.05)


def test_mixed_labels_are_refused():
  batch = {"image": jnp.ones((10, 2, 2, 1)), "label": jnp.ones((10, 3)) / 3}
  augment = null_class.outliers(3)
  with pytest.raises(ValueError, match="null_class needs integer labels"):
    augment(jax.random.key(0), batch)
  loss_fn = null_class.robust_loss(balls.Linf(0.1)).loss_fn
  logits = jnp.zeros(4)
  with pytest.raises(ValueError, match="null_class needs integer labels"):
    loss_fn(logits, logits, (jnp.ones(4) / 4, 0.5))


def test_outliers_are_shuffled_and_null():
  x = jnp.asarray(np.random.default_rng(0).uniform(size=(8, 4, 4, 3)))
  batch = {"image": x, "label": jnp.zeros(8, jnp.int32)}
  augment = null_class.outliers(10, share=0.25)
  found = augment(jax.random.key(0), batch)
  np.testing.assert_array_equal(found["label"], [10, 10, 0, 0, 0, 0, 0, 0])
  np.testing.assert_array_equal(found["image"][2:], x[2:])
  for old, new in zip(x[:2], found["image"][:2], strict=True):
    assert not np.array_equal(old, new)
    # Whole pixels move: the set of colours is the same.
    pixels = [np.asarray(image).reshape(-1, 3) for image in (old, new)]
    a, b = (p[np.lexsort(p.T)] for p in pixels)
    np.testing.assert_array_equal(a, b)
  with pytest.raises(ValueError, match="share must be <= 1"):
    null_class.outliers(10, share=1.5)
