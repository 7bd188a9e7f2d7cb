"""Distillation: a student that learns the probabilities of a teacher.

Defensive distillation (Papernot et al., 2016) trains teacher and student at a
high temperature T and uses the student at T = 1:

  teacher   robust_loss=tempered(T)
  student   robust_loss=defensive(T), augment=taught(teacher, T)

Its logits are T times as large as usual, so in float32 the gradient of
cross-entropy is zero and gradient attacks on it fail; attacks on the margin of
the logits do not. Robust distillation (ARD, Goldblum et al., 2020) instead
teaches the student at its own adversarial inputs.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxadv import checks, losses, types
from jaxadv.defences import training

Array = jax.Array


class Taught(NamedTuple):
  """What a student is told about a row.

  Attributes:
    label: The label.
    probabilities: The teacher's, at the temperature [C].
  """

  label: Array
  probabilities: Array


def taught(
  teacher: types.LogitsFn, temperature: float = 1.0
) -> training.Augment:
  """`(key, batch) -> batch` that sets "target" to `Taught`.

  The teacher sees the (augmented) clean inputs. The labels stay what the
  adversary is told.
  """
  checks.positive("temperature", temperature)
  return functools.partial(_taught, teacher, temperature)


def tempered(temperature: float) -> training.RobustLoss:
  """`CE(z / T, y)` on clean inputs: the teacher of defensive distillation."""
  checks.positive("temperature", temperature)
  loss_fn = functools.partial(_tempered, temperature)
  return training.RobustLoss(loss_fn, clean=True, adversarial=False)


def defensive(temperature: float) -> training.RobustLoss:
  """`CE(z / T, q)` with q the teacher's probabilities at T; use z at T = 1.

  The paper's temperatures range from 1 to 100.

  Reference: Papernot et al., "Distillation as a defense to adversarial
  perturbations against deep neural networks", 2016.
  """
  checks.positive("temperature", temperature)
  loss_fn = functools.partial(_defensive, temperature)
  return training.RobustLoss(loss_fn, clean=True, adversarial=False)


def ard(temperature: float = 30.0, alpha: float = 1.0) -> training.RobustLoss:
  """`alpha T^2 KL(q || softmax(z' / T)) + (1 - alpha) CE(z, y)`.

  q are the teacher's probabilities at T for the clean input, z' the student's
  logits at the adversarial one. Defaults are the reference code's, whose
  divergence is a mean over classes, not a sum: with `alpha < 1` it weighs the
  label C times as much as this, which is the paper's formula. At `alpha = 1`
  the clean logits are not asked for.

  Reference: Goldblum, Fowl, Feizi, Goldstein, "Adversarially robust
  distillation", 2020.
  """
  checks.positive("temperature", temperature)
  checks.non_negative("alpha", alpha)
  checks.at_most_one("alpha", alpha)
  loss_fn = functools.partial(_ard, temperature, alpha)
  return training.RobustLoss(loss_fn, clean=alpha < 1, adversarial=True)


def _taught(teacher, temperature, key, batch) -> training.Batch:
  x = batch["image"]
  logits = teacher(jax.random.split(key, len(x)), x)
  probabilities = jax.nn.softmax(logits / temperature)
  return {**batch, "target": Taught(batch["label"], probabilities)}


def _tempered(temperature, clean, adv, y) -> Array:
  del adv
  return losses.cross_entropy(clean / temperature, y)


def _defensive(temperature, clean, adv, y: Taught) -> Array:
  return _tempered(temperature, clean, adv, y.probabilities)


def _ard(temperature, alpha, clean, adv, y: Taught) -> Array:
  divergence = losses.kl_divergence(adv / temperature, y.probabilities)
  loss = alpha * jnp.square(temperature) * divergence
  if clean is None:
    return loss
  return loss + (1 - alpha) * losses.cross_entropy(clean, y.label)
