"""The parts that the rows of `recipes` compose, built anew in every step.

They are built from a `Setting`, whose numbers may be traced: what changes from
step to step compiles nothing anew.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxadv import attacks, criteria, types
from jaxadv.data import augment, mixing
from jaxadv.defences import (
  adversaries,
  distillation,
  null_class,
  robust_losses,
  training,
  weights,
)

Parts = dict[str, Any]
Helpers = tuple[types.LogitsFn, ...]
Bounds = tuple[float, float] | None

# Of the noise that goes with logit pairing and squeezing: Kannan et al. (2018)
# for MNIST. That they clip is our choice: their paper does not say.
SIGMA = 0.5
# Of TRADES, on CIFAR-10.
BETA = 6.0


class Setting(NamedTuple):
  """What a step of a recipe is built with.

  Attributes:
    ball: Of the radius at this step, which may be traced.
    num_steps: Of the attack.
    step_size: Their length.
    number: What the recipe tunes.
    num_classes: Of the data.
    progress: The share of the training that is done, traced.
    key: Of this step, traced.
    helpers: Trained models: a teacher, or static sources.
  """

  ball: types.Ball
  num_steps: int
  step_size: types.Scalar
  number: float
  num_classes: int
  progress: types.Scalar
  key: jax.Array
  helpers: Helpers


def pgd(s: Setting) -> types.Attack:
  """PGD of the flags' steps."""
  return adversaries.pgd(s.ball, num_steps=s.num_steps, step_size=s.step_size)


def fgsm(s: Setting) -> types.Attack:
  """FGSM on every row, those that are misclassified already included."""
  return attacks.fgsm(s.ball, criterion=criteria.never)


def with_pgd(s: Setting, robust_loss: training.RobustLoss) -> Parts:
  """That loss under PGD."""
  return {"robust_loss": robust_loss, "attack": pgd(s)}


def madry(attack: types.Attack, **others: Any) -> Parts:
  """Cross-entropy under that attack, and other parts."""
  return {"robust_loss": training.madry, "attack": attack} | others


def standard(**others: Any) -> Parts:
  """Cross-entropy on clean inputs, and other parts."""
  return {"robust_loss": training.standard} | others


def noise(sigma: float, bounds: Bounds = (0.0, 1.0)) -> training.Augment:
  """Gaussian noise on the images of a batch, clipped to the bounds, if any."""
  return mixing.on_images(
    functools.partial(augment.gaussian_noise, sigma=sigma, bounds=bounds)
  )


def trades(s: Setting) -> Parts:
  """TRADES; the number is beta."""
  return {
    "robust_loss": robust_losses.trades(s.number),
    "attack": adversaries.trades(
      s.ball, num_steps=s.num_steps, step_size=s.step_size
    ),
    "adversary_target": training.predictions,
  }


def trades_awp(s: Setting) -> Parts:
  """TRADES of its default beta with AWP; the number is gamma.

  Perturbed after a twelfth of the training: 10 epochs of the paper's 120.
  """
  perturb = weights.when(s.progress >= 1 / 12, weights.awp(s.number))
  return trades(s._replace(number=BETA)) | {"perturb_weights": perturb}


def mart(s: Setting) -> Parts:
  """MART; the number is beta."""
  attack = adversaries.mart(
    s.ball, num_steps=s.num_steps, step_size=s.step_size
  )
  return {"robust_loss": robust_losses.mart(s.number), "attack": attack}


def fat(s: Setting) -> Parts:
  """FAT: tau grows from 0 to the number, in equal parts of the training."""
  tau = jnp.floor(s.progress * (s.number + 1)).astype(jnp.int32)
  return madry(adversaries.friendly(pgd(s), tau))


def ensemble_at(s: Setting) -> Parts:
  """Ensemble adversarial training: one source for each batch."""
  index = jax.random.randint(s.key, (), 0, 1 + len(s.helpers))
  attack = adversaries.from_source(fgsm(s), s.helpers, index)
  return {"robust_loss": robust_losses.mixture(s.number), "attack": attack}


def ard(s: Setting) -> Parts:
  """Robust distillation; the number is the temperature."""
  return {
    **with_pgd(s, distillation.ard(s.number)),
    "augment": distillation.taught(s.helpers[0], s.number),
  }


def null(s: Setting) -> Parts:
  """Rejection: perturbations of every size, and inputs of no class."""
  return {
    "robust_loss": null_class.robust_loss(s.ball),
    "attack": null_class.any_size(pgd(s)),
    "augment": null_class.outliers(s.num_classes),
  }
