"""Who has won, at ties and where logits are not numbers."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import criteria

_Z = jnp.array([1.0, 3.0, 2.0])
_NAN = jnp.array([1.0, jnp.nan, 2.0])


def test_misclassified():
  assert not criteria.misclassified(_Z, 1)
  assert criteria.misclassified(_Z, 0)
  assert criteria.misclassified_pair(_Z, (0, 1))
  assert not criteria.misclassified_pair(_Z, (1, 0))


def test_classified_as():
  assert criteria.classified_as(_Z, 1)
  assert not criteria.classified_as(_Z, 2)


def test_the_first_of_equals_is_the_class():
  tie = jnp.array([2.0, 2.0, 0.0])
  assert not criteria.misclassified(tie, 0)
  assert criteria.misclassified(tie, 1)
  assert criteria.classified_as(tie, 0)
  assert not criteria.classified_as(tie, 1)


@pytest.mark.parametrize(
  "z", [_NAN, jnp.full(3, jnp.nan), jnp.array([0.0, jnp.inf, 1.0])]
)
def test_logits_that_decide_nothing_are_wrong_and_reach_no_target(z):
  for y in range(3):
    assert criteria.misclassified(z, y)
    assert not criteria.classified_as(z, y)
    assert criteria.misclassified_pair(z, (y, 0))
    assert criteria.misclassified_with(0.5)(z, y)
    assert criteria.confidence_below(0.5)(z, y)


def test_a_class_that_is_ruled_out_decides_as_others_do():
  ruled_out = jnp.array([1.0, -jnp.inf, 0.0])
  assert not criteria.misclassified(ruled_out, 0)
  assert criteria.misclassified(ruled_out, 1)
  assert criteria.classified_as(ruled_out, 0)


def test_resembles():
  assert criteria.resembles(_Z, jnp.array([0.1, 0.8, 0.1]))
  assert not criteria.resembles(_Z, jnp.array([0.8, 0.1, 0.1]))


def test_differs():
  assert not criteria.differs(_Z, jnp.array([0.1, 0.8, 0.1]))
  assert criteria.differs(_Z, jnp.array([0.8, 0.1, 0.1]))
  assert criteria.differs(_NAN, jnp.array([0.8, 0.1, 0.1]))


def test_never():
  assert not criteria.never(_Z, 0)
  assert criteria.never(_Z, 0).dtype == bool


def test_confidence_below():
  share = float(np.exp(3) / np.exp([1, 3, 2]).sum())
  assert criteria.confidence_below(share + 0.01)(_Z, 1)
  assert not criteria.confidence_below(share - 0.01)(_Z, 1)


def test_misclassified_with_confidence():
  won = criteria.misclassified_with(1.5)
  assert won(_Z, 0)  # Leads by 2.
  assert not won(_Z, 2)  # Leads by 1.
  assert not won(_Z, 1)
  assert criteria.misclassified_with(0.0)(_Z, 2)


@pytest.mark.parametrize(
  ("make", "value"),
  [
    (criteria.confidence_below, 0.3),
    (criteria.misclassified_with, 0.3),
  ],
)
def test_equal_parameters_make_equal_criteria(make, value):
  # Else each call of the factory would compile anew.
  assert make(value) == make(value) and make(value) != make(0.2)
  assert hash(make(value)) == hash(make(value))


def test_refuses_bad_parameters():
  with pytest.raises(ValueError, match="confidence"):
    criteria.misclassified_with(-1.0)
  with pytest.raises(ValueError, match="threshold"):
    criteria.confidence_below(1.5)
