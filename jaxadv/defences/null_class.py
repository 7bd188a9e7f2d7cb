"""A network that may answer "I do not know": one more class, the last.

Training shows it adversarial inputs of every size. The larger the perturbation,
the more of the label's probability is to move to the null class, so that an
input is rejected rather than taken for another class:

  module    a network with num_classes + 1 outputs
  loss      robust_loss(ball)
  attack    any_size(adversaries.pgd(ball, ...))
  augment   outliers(num_classes), to reject inputs of no class, too

A rejection is no success for an attacker who wants a wrong answer: evaluate
with `fooled` as criterion and `wrong_margin` as loss, and count with
`outcomes`.

Reference: Hosseini, Chen, Kannan, Zhang, Poovendran, "Blocking transferability
of adversarial examples in black-box learning systems", 2017.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxadv import checks, criteria, losses, types
from jaxadv.defences import training

Array = jax.Array
Partial = jax.tree_util.Partial


class Outcomes(NamedTuple):
  """What became of a set of inputs, as shares that add up to one."""

  correct: float
  null: float
  fooled: float


def outcomes(logits: Any, labels: Any) -> Outcomes:
  """Counts right, rejected and wrong answers; what is not finite is wrong.

  Args:
    logits: `[N, C + 1]`, the null class last.
    labels: `[N]`; label C, for inputs of no class, counts as correct when
      rejected.
  """
  logits, labels = np.asarray(logits), np.asarray(labels)
  finite = np.isfinite(logits.max(axis=-1))
  answer = logits.argmax(axis=-1)
  correct = finite & (answer == labels)
  null = finite & (answer == logits.shape[-1] - 1) & ~correct
  return Outcomes(
    float(correct.mean()), float(null.mean()), float((~correct & ~null).mean())
  )


def fooled(logits: Array, label: Array) -> Array:
  """Criterion: the answer is neither the label nor null."""
  rejected = criteria.classified_as(logits, jnp.asarray(logits.shape[-1] - 1))
  return criteria.misclassified(logits, label) & ~rejected


def wrong_margin(logits: Array, label: Array) -> Array:
  """Loss of attacks: the best wrong class over the better of label and null.

  `max_{j != y, null} z_j - max(z_y, z_null)`: positive where `fooled`.
  """
  right = jnp.arange(logits.shape[-1]) == label
  allowed = right.at[-1].set(True)
  # By index, for the reason given in `losses.margin`.
  wrong = jnp.argmax(jnp.where(allowed, -jnp.inf, logits))
  best = jnp.argmax(jnp.where(allowed, logits, -jnp.inf))
  return logits[wrong] - logits[best]


def linear_mass(size: Array) -> Array:
  """The null class gets as much as the share of the radius that is used.

  Our own choice; the paper fits its function to the errors of a network.
  """
  return jnp.clip(size, 0.0, 1.0)


def robust_loss(
  ball: types.Ball, null_mass: Callable[[Array], Array] = linear_mass
) -> training.RobustLoss:
  """`(CE(z, y) + CE(z', t)) / 2`, t moving from the label to null.

  t has `q = null_mass(||x' - x|| / eps)` on the null class and 1 - q on the
  label. Labels must be integers.

  Args:
    ball: Measures perturbations.
    null_mass: From the share of the radius to a probability; 0 at 0.
  """
  return training.RobustLoss(
    _loss,
    clean=True,
    adversarial=True,
    target_fn=functools.partial(_target, ball, null_mass),
  )


def outliers(num_classes: int, share: float = 0.1) -> training.Augment:
  """`(key, batch) -> batch` that makes inputs of no class, labelled null.

  A share of the rows, the first ones, gets its pixels shuffled, which keeps
  their brightness and colours. Our own choice of outliers.

  Raises:
    ValueError: `share` is not in [0, 1].
  """
  checks.non_negative("share", share)
  checks.at_most_one("share", share)
  return functools.partial(_outliers, num_classes, share)


def _outliers(num_classes, share, key, batch) -> training.Batch:
  x, label = batch["image"], batch["label"]
  training.integer_label(label[0], "null_class")
  rows = jnp.arange(round(share * len(x)))

  def shuffle(key, image):
    pixels = image.reshape(-1, image.shape[-1])
    return jax.random.permutation(key, pixels).reshape(image.shape)

  keys = jax.random.split(key, len(rows))
  return {
    **batch,
    "image": x.at[rows].set(jax.vmap(shuffle)(keys, x[rows])),
    "label": label.at[rows].set(num_classes),
  }


def _target(ball, null_mass, x, x_adv, label) -> tuple[Array, Array]:
  return label, null_mass(ball.norm(x_adv - x) / ball.eps)


def _loss(clean, adv, y) -> Array:
  label, q = y
  training.integer_label(label, "null_class")
  null = adv.shape[-1] - 1
  moved = (1 - q) * losses.cross_entropy(adv, label)
  moved = moved + q * losses.cross_entropy(adv, jnp.full_like(label, null))
  return 0.5 * (losses.cross_entropy(clean, label) + moved)


class ScaledState(NamedTuple):
  """The rows of an attack whose results are scaled (see `types.State`)."""

  inner: Any
  x: Array
  share: Array

  @property
  def x_adv(self) -> Array:
    """The share of the wrapped attack's perturbation."""
    share = self.share.reshape(-1, *(1,) * (self.x.ndim - 1))
    return self.x + share * (self.inner.x_adv - self.x)

  @property
  def found(self) -> Array:
    """The wrapped attack's."""
    return self.inner.found

  @property
  def done(self) -> Array:
    """The wrapped attack's."""
    return self.inner.done


def any_size(attack: types.Attack) -> types.Attack:
  """Keeps a share of each row's perturbation, drawn uniformly from [0, 1].

  For training: the model is not asked about the result.
  """
  return attack._replace(
    init=Partial(_init_scaled, attack), step=Partial(_step_scaled, attack)
  )


def _init_scaled(attack, keys, x, y) -> ScaledState:
  split = jax.vmap(jax.random.split)(keys)
  share = jax.vmap(lambda key: jax.random.uniform(key, (), x.dtype))(
    split[:, 0]
  )
  return ScaledState(attack.init(split[:, 1], x, y), x, share)


def _step_scaled(attack, logits_fn, state) -> tuple[ScaledState, types.PyTree]:
  inner, outputs = attack.step(logits_fn, state.inner)
  return state._replace(inner=inner), outputs
