"""What attacks maximise: `(logits[C], y) -> []` for ONE example.

Higher is worse for the model. Any optax loss serves unchanged; these are the
ones the attack literature adds. `y` is an int label unless stated.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jaxadv import types

Array = jax.Array

# Keeps the quotient of DLR finite where the top logits tie (AutoAttack's own).
_TINY = 1e-12


def cross_entropy(logits: Array, y: Array) -> Array:
  """`-log softmax(logits)[y]`; `y` may also be soft labels [C]."""
  if jnp.ndim(y) == 0:
    return optax.softmax_cross_entropy_with_integer_labels(logits, y)
  return optax.softmax_cross_entropy(logits, y)


def margin(logits: Array, label: Array) -> Array:
  """`max_{j != y} z_j - z_y`: positive where the label has lost.

  The loss of Carlini and Wagner (2017) without its confidence.
  """
  is_label = jnp.arange(logits.shape[-1]) == label
  # Not `jnp.max`: its gradient looks for the maximum by equality and finds none
  # where the compiler computes the logits a second time with other rounding.
  other = jnp.argmax(jnp.where(is_label, -jnp.inf, logits))
  return logits[other] - logits[label]


def targeted_cross_entropy(logits: Array, target: Array) -> Array:
  """`log softmax(logits)[t]`: the attacker wants class `target`."""
  return -cross_entropy(logits, target)


def targeted_margin(logits: Array, target: Array) -> Array:
  """`z_t - max_{j != t} z_j`: positive where the target has won."""
  return -margin(logits, target)


def dlr(logits: Array, label: Array) -> Array:
  """Difference of logits ratio (Croce and Hein, 2020).

  `-(z_y - max_{j != y} z_j) / (z_(1) - z_(3))`, with `z_(k)` the k-th largest
  logit: invariant to shift and scale, so it does not saturate. Needs three
  classes; with two it is the margin.
  """
  if logits.shape[-1] < 3:
    return margin(logits, label)
  top = jax.lax.top_k(logits, 3)[0]
  return margin(logits, label) / (top[0] - top[2] + _TINY)


def targeted_dlr(logits: Array, y: tuple[Array, Array]) -> Array:
  """Targeted DLR (Croce and Hein, 2020); `y` is `(label, target)`.

  `-(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2)`. Needs four classes; three use
  `z_(3)` alone, two the difference of the logits. Success against it is any
  misclassification, not the target.
  """
  label, target = y
  difference = logits[target] - logits[label]
  num_classes = logits.shape[-1]
  if num_classes < 3:
    return difference
  top = jax.lax.top_k(logits, min(num_classes, 4))[0]
  return difference / (top[0] - jnp.mean(top[2:]) + _TINY)


def kl_divergence(logits: Array, probabilities: Array) -> Array:
  """`KL(p || softmax(logits))`; `y` is `p` [C] (TRADES: of the clean input)."""
  return optax.kl_divergence(jax.nn.log_softmax(logits), probabilities)


def squared_error(
  outputs_fn: Callable[[Array], Array] = jax.nn.softmax,
) -> types.LossFn:
  """`-||y - f(x)||^2 / 2` to a goal output `y` [C].

  Args:
    outputs_fn: Makes the model's outputs f of its logits. The default is the
      softmax; `jax.nn.sigmoid` fits networks that end in sigmoid units.
  """
  return _SquaredError(outputs_fn)


# A frozen dataclass and not an inner function: built twice it is equal, so the
# compiled program is found again.
@dataclasses.dataclass(frozen=True)
class _SquaredError:
  outputs_fn: Callable[[Array], Array]

  def __call__(self, logits: Array, goal: Array) -> Array:
    return -0.5 * jnp.sum(jnp.square(goal - self.outputs_fn(logits)))
