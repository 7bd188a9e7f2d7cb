import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv.defences import distillation
from tests import victims

_LABEL = jnp.int32(1)
_CLEAN, _ADV = np.array([2.0, -1.0, 0.5]), np.array([0.5, 1.0, -0.5])
_Q = np.array([0.2, 0.5, 0.3])


def _softmax(z):
  return np.exp(z) / np.exp(z).sum(-1, keepdims=True)


def _value(robust_loss, y, clean=_CLEAN):
  clean = None if clean is None else jnp.asarray(clean, jnp.float32)
  adv = jnp.asarray(_ADV, jnp.float32)
  return float(robust_loss.loss_fn(clean, adv, y))


def test_tempered_divides_the_logits_in_training():
  expected = -np.log(_softmax(_CLEAN / 20.0)[1])
  assert _value(distillation.tempered(20.0), _LABEL) == pytest.approx(expected)


def test_defensive_learns_the_teachers_probabilities_at_the_temperature():
  y = distillation.Taught(_LABEL, jnp.asarray(_Q, jnp.float32))
  expected = -np.sum(_Q * np.log(_softmax(_CLEAN / 20.0)))
  assert _value(distillation.defensive(20.0), y) == pytest.approx(expected)


def test_ard():
  y = distillation.Taught(_LABEL, jnp.asarray(_Q, jnp.float32))
  divergence = np.sum(_Q * np.log(_Q / _softmax(_ADV / 30.0)))
  expected = 900.0 * divergence
  ard = distillation.ard()
  assert not ard.clean and ard.adversarial
  assert _value(ard, y, clean=None) == pytest.approx(expected, rel=1e-4)
  both = distillation.ard(temperature=2.0, alpha=0.25)
  assert both.clean
  divergence = np.sum(_Q * np.log(_Q / _softmax(_ADV / 2.0)))
  expected = 0.25 * 4.0 * divergence - 0.75 * np.log(_softmax(_CLEAN)[1])
  assert _value(both, y) == pytest.approx(expected, rel=1e-5)


def test_the_teacher_sees_the_inputs_at_the_temperature():
  teacher = victims.linear([[1.0, 0.0], [0.0, 2.0]], [0.0, 0.5])
  x = np.array([[0.2, 0.8], [0.6, 0.1]], np.float32)
  batch = {"image": jnp.asarray(x), "label": jnp.array([0, 1])}
  found = distillation.taught(teacher, 4.0)(jax.random.key(0), batch)
  np.testing.assert_allclose(
    found["target"].probabilities,
    _softmax(victims.logits(teacher, x) / 4.0),
    rtol=1e-5,
  )
  # The adversary still reads the labels.
  np.testing.assert_array_equal(found["label"], batch["label"])
  np.testing.assert_array_equal(found["target"].label, batch["label"])


@pytest.mark.parametrize(
  ("make", "name"),
  [
    (lambda: distillation.tempered(0.0), "temperature must be > 0"),
    (lambda: distillation.defensive(-1.0), "temperature must be > 0"),
    (lambda: distillation.ard(alpha=1.5), "alpha must be <= 1"),
    (lambda: distillation.taught(None, 0.0), "temperature must be > 0"),
  ],
)
def test_refuses_numbers_out_of_range(make, name):
  with pytest.raises(ValueError, match=name):
    make()
