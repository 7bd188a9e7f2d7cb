"""A whole call is refused before anything compiles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import attacks, balls, call_checks, criteria
from tests import victims

_X = np.full((3, 2, 2, 1), 0.5, np.float32)


def _one_row(keys, x):
  del keys
  return jnp.zeros((1, 5)) + jnp.sum(x)


def _no_row(keys, x):
  del keys
  return jnp.sum(x)


def _two_outputs(keys, x):
  del keys
  return {"a": x, "b": jnp.sum(x, axis=(1, 2, 3))}


def test_model_tells_its_classes_or_is_refused():
  assert call_checks.model(victims.ordinary(4, 5), _X) == 5
  assert call_checks.model(jax.tree_util.Partial(_two_outputs), _X) is None
  for bad in map(jax.tree_util.Partial, (_one_row, _no_row)):
    with pytest.raises(ValueError, match="keep the batch axis first"):
      call_checks.model(bad, _X)


def test_probabilities_are_warned_of():
  logits = np.array([[0.2, 0.3, 0.5], [0.0, 0.0, 1.0]], np.float32)
  with pytest.warns(UserWarning, match="probabilities"):
    call_checks.warn_of_outputs(logits)
  # Warnings are errors here, so silence is tested, too.
  call_checks.warn_of_outputs(logits - 0.5)
  call_checks.warn_of_outputs(2 * logits)


def test_outputs_that_are_no_numbers_are_warned_of():
  logits = np.array([[0.2, np.nan], [np.inf, 0.0], [0.0, -np.inf]], np.float32)
  with pytest.warns(UserWarning, match="for 2 of the first 3"):
    call_checks.warn_of_outputs(logits)


def test_the_attack_s_criterion_is_the_judge_s():
  attack = attacks.fgsm(balls.Linf(0.1), criterion=criteria.classified_as)
  own = call_checks.judged_by(attack.threat, None)
  again = call_checks.judged_by(attack.threat, criteria.classified_as)
  assert own == again == attack.threat.criterion
  with pytest.raises(ValueError, match="contradicts that of the attack, class"):
    call_checks.judged_by(attack.threat, criteria.misclassified)
  never = attacks.fgsm(balls.Linf(0.1), criterion=criteria.never).threat
  call_checks.judged_by(never, criteria.misclassified)
  call_checks.judged_by(never, criteria.never)
  with pytest.raises(ValueError, match="criterion must be given"):
    call_checks.judged_by(never, None)


def test_criteria_of_equal_numbers_do_not_contradict():
  attack = attacks.fgsm(
    balls.Linf(0.1), criterion=criteria.misclassified_with(0.5)
  )
  call_checks.judged_by(attack.threat, criteria.misclassified_with(0.5))
  with pytest.raises(ValueError, match="contradicts"):
    call_checks.judged_by(attack.threat, criteria.misclassified_with(0.6))
