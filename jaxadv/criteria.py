"""When the attacker has won: `(logits[C], y) -> bool` for ONE example.

A model is right where its largest logit is a finite number and that of the
label. An input that makes it overflow is not classified, so it is not robust
there; but no target has been reached either.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxadv import types

Array = jax.Array


def misclassified(logits: Array, label: Array) -> Array:
  """Another class has the largest logit; the first of equals is the class.

  Logits that decide nothing, since one is NaN or the largest is infinite, are
  misclassified as well.
  """
  return (jnp.argmax(logits) != label) | ~_decided(logits)


def classified_as(logits: Array, target: Array) -> Array:
  """The target class has the largest logit, which is a finite number."""
  return (jnp.argmax(logits) == target) & _decided(logits)


def misclassified_pair(logits: Array, y: tuple[Array, Array]) -> Array:
  """Misclassified, for losses whose `y` is `(label, target)`."""
  return misclassified(logits, y[0])


def resembles(logits: Array, goal: Array) -> Array:
  """The largest logit is where the goal output [C] is largest."""
  return classified_as(logits, jnp.argmax(goal))


def differs(logits: Array, clean: Array) -> Array:
  """The largest logit is no longer where the output `clean` [C] is largest."""
  return misclassified(logits, jnp.argmax(clean))


def confidence_below(threshold: float) -> types.Criterion:
  """The probability of the label has fallen below `threshold`.

  Raises:
    ValueError: `threshold` is not in (0, 1].
  """
  if not 0.0 < threshold <= 1.0:
    raise ValueError(f"threshold must be in (0, 1], got {threshold!r}")
  return _ConfidenceBelow(threshold)


def misclassified_with(confidence: float) -> types.Criterion:
  """Another class leads the label's logit by more than `confidence`.

  Raises:
    ValueError: `confidence` is negative.
  """
  if not confidence >= 0.0:
    raise ValueError(f"confidence must be >= 0, got {confidence!r}")
  return _MisclassifiedWith(confidence)


def never(logits: Array, y: types.PyTree) -> Array:
  """Nobody ever wins: the attack uses its whole budget, as training wants."""
  del logits, y
  return jnp.zeros((), bool)


def _decided(logits: Array) -> Array:
  # The maximum is NaN where any logit is. Minus infinity is a fair logit of a
  # class that is ruled out.
  return jnp.isfinite(jnp.max(logits))


def is_never(criterion: types.Criterion) -> bool:
  """Whether this is `never`, so that success has to be said elsewhere."""
  return types.same(types.hashable(criterion), types.hashable(never))


@dataclasses.dataclass(frozen=True)
class _ConfidenceBelow:
  threshold: float

  def __call__(self, logits: Array, label: Array) -> Array:
    # Not `<`: a probability that is no number is not large enough.
    return ~(jax.nn.softmax(logits)[label] >= self.threshold)


@dataclasses.dataclass(frozen=True)
class _MisclassifiedWith:
  confidence: float

  def __call__(self, logits: Array, label: Array) -> Array:
    # The label is handicapped by the confidence it has to lose by.
    handicap = self.confidence * (jnp.arange(logits.shape[-1]) == label)
    return misclassified(logits + handicap, label)
