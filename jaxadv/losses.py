"""What attacks maximise: `(logits[C], y) -> []` for ONE example.

Higher is worse for the model. Any optax loss serves unchanged; these are the
ones the attack literature adds. `y` is an int label unless stated.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jaxadv import checks, numerics, types

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


def difference(logits: Array, y: tuple[Array, Array]) -> Array:
  """`z_t - z_y`, the lead of the target; `y` is `(label, target)`.

  Where it is positive the label has lost, if not to the target. On a linear
  model it leads straight to the boundary between the two.
  """
  label, target = y
  return logits[target] - logits[label]


def dlr(logits: Array, label: Array) -> Array:
  """Difference of logits ratio (Croce and Hein, 2020).

  `-(z_y - max_{j != y} z_j) / (z_(1) - z_(3))`, with `z_(k)` the k-th largest
  logit: invariant to shift and scale, so it does not saturate. Needs three
  classes; with two it is the margin.
  """
  if logits.shape[-1] < 3:
    return margin(logits, label)
  top = jax.lax.top_k(logits, 3)[0]
  return _ratio(margin(logits, label), top[0] - top[2])


def targeted_dlr(logits: Array, y: tuple[Array, Array]) -> Array:
  """Targeted DLR (Croce and Hein, 2020); `y` is `(label, target)`.

  `-(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2)`. Needs four classes; three use
  `z_(3)` alone, two the difference of the logits. Success against it is any
  misclassification, not the target.
  """
  num_classes = logits.shape[-1]
  if num_classes < 3:
    return difference(logits, y)
  top = jax.lax.top_k(logits, min(num_classes, 4))[0]
  return _ratio(difference(logits, y), top[0] - jnp.mean(top[2:]))


def _ratio(lead: Array, spread: Array) -> Array:
  # The slope of a quotient has the square of what it divides by.
  least = numerics.guard(_TINY**2, spread.dtype) ** 0.5
  return lead / (spread + least)


def kl_divergence(logits: Array, probabilities: Array) -> Array:
  """`KL(p || softmax(logits))`; `y` is `p` [C] (TRADES: of the clean input)."""
  return optax.kl_divergence(jax.nn.log_softmax(logits), probabilities)


def closeness(features: types.PyTree, guide: types.PyTree) -> Array:
  """`-||y - f||^2 / 2` to the features `y` of a guide: arrays or pytrees."""
  squares = jax.tree.map(
    lambda f, y: jnp.sum(jnp.square(y - f)), features, guide
  )
  return -0.5 * jnp.sum(jnp.stack(jax.tree.leaves(squares)))


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


def jitter(*, scale: float = 10.0, noise: float = 0.1) -> types.LossFn:
  """The Jitter loss (Schwinn et al., 2021); `y` is `(label, key)`.

  `||softmax(scale * z / max |z|) + noise * n - one_hot(label)||_2`, with n
  standard normal, drawn from the key: the scaled logits do not saturate, and
  the noise makes successive gradients favour different classes. An attack
  needs a fresh key in each step: `attacks.noisy_loss`, `attacks.jitter_pgd`.

  The authors divide by the size of the perturbation once it has won, to make it
  smaller; attacks of a fixed budget stop there instead.

  Args:
    scale: The largest magnitude among the scaled logits. 10 is the authors'.
    noise: The standard deviation; 0.1 as in torchattacks (the authors choose
      among 0.05 to 0.25 for each model).

  Raises:
    ValueError: `scale` is not positive or `noise` is negative.
  """
  checks.positive("scale", scale)
  checks.non_negative("noise", noise)
  return _Jitter(scale, noise)


@dataclasses.dataclass(frozen=True)
class _Jitter:
  scale: float
  noise: float

  def __call__(self, logits: Array, y: tuple[Array, Array]) -> Array:
    label, key = y
    # Indexed for the reason given in `margin`.
    largest = jnp.abs(logits[jnp.argmax(jnp.abs(logits))])
    scaled = self.scale * logits / jnp.where(largest > 0, largest, 1.0)
    normal = jax.random.normal(key, logits.shape, logits.dtype)
    jittered = jax.nn.softmax(scaled) + self.noise * normal
    one_hot = jax.nn.one_hot(label, logits.shape[-1], dtype=logits.dtype)
    return jnp.linalg.norm(jittered - one_hot)
