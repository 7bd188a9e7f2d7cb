"""The defences that `--defence` can name: name -> the parts of a training step.

A row says what a paper's method passes to `training.train_step`, and the value
of the one number that the paper tunes, which `--number` overrides.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxadv import attacks, criteria, losses, models, types
from jaxadv.data import augment, mixing
from jaxadv.defences import (
  adversaries,
  distillation,
  ensembles,
  null_class,
  regularisers,
  robust_losses,
  training,
  weights,
)

Parts = dict[str, Any]
Helpers = tuple[types.LogitsFn, ...]

# Of the noise that goes with logit pairing and squeezing: Kannan et al. (2018)
# for MNIST.
_SIGMA = 0.5
# Of TRADES, on CIFAR-10.
_BETA = 6.0
# Of an ensemble, as in most papers.
_NUM_MEMBERS = 3


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


class Recipe(NamedTuple):
  """A row of the table.

  Attributes:
    build: Makes the keywords of `training.train_step`.
    number: The paper's value of what it tunes; None where it tunes nothing.
    meaning: What that number is.
    helpers: How many trained models it needs, at least.
    module: Makes its network of the plain one and the number of classes.
    loss_fn: What attacks of the evaluation maximise.
    criterion: What counts as fooled in the evaluation.
  """

  build: Callable[[Setting], Parts]
  number: float | None = None
  meaning: str = ""
  helpers: int = 0
  module: Callable[[Any, int], nn.Module] = lambda module, num_classes: module
  loss_fn: types.LossFn = losses.cross_entropy
  criterion: types.Criterion = criteria.misclassified


def _pgd(s: Setting) -> types.Attack:
  return adversaries.pgd(s.ball, num_steps=s.num_steps, step_size=s.step_size)


def _fgsm(s: Setting) -> types.Attack:
  return attacks.fgsm(s.ball, criterion=criteria.never)


def _with_pgd(s: Setting, robust_loss: training.RobustLoss) -> Parts:
  return {"robust_loss": robust_loss, "attack": _pgd(s)}


def _madry(attack: types.Attack, **parts: Any) -> Parts:
  return {"robust_loss": training.madry, "attack": attack} | parts


def _standard(**parts: Any) -> Parts:
  return {"robust_loss": training.standard} | parts


def _noise(sigma: float) -> training.Augment:
  return mixing.on_images(
    functools.partial(augment.gaussian_noise, sigma=sigma)
  )


def _trades(s: Setting) -> Parts:
  return {
    "robust_loss": robust_losses.trades(s.number),
    "attack": adversaries.trades(
      s.ball, num_steps=s.num_steps, step_size=s.step_size
    ),
    "adversary_target": training.predictions,
  }


def _trades_awp(s: Setting) -> Parts:
  """TRADES of its default, perturbed after a twelfth of the training."""
  perturb = weights.when(s.progress >= 1 / 12, weights.awp(s.number))
  return _trades(s._replace(number=_BETA)) | {"perturb_weights": perturb}


def _mart(s: Setting) -> Parts:
  attack = adversaries.mart(
    s.ball, num_steps=s.num_steps, step_size=s.step_size
  )
  return {"robust_loss": robust_losses.mart(s.number), "attack": attack}


def _friendly(s: Setting) -> Parts:
  """Patience grows from 0 to the number in equal parts of the training."""
  tau = jnp.floor(s.progress * (s.number + 1)).astype(jnp.int32)
  return _madry(adversaries.friendly(_pgd(s), tau))


def _ensemble_at(s: Setting) -> Parts:
  index = jax.random.randint(s.key, (), 0, 1 + len(s.helpers))
  attack = adversaries.from_source(_fgsm(s), s.helpers, index)
  return {"robust_loss": robust_losses.mixture(s.number), "attack": attack}


def _ard(s: Setting) -> Parts:
  return {
    **_with_pgd(s, distillation.ard(s.number)),
    "augment": distillation.taught(s.helpers[0], s.number),
  }


def _null_class(s: Setting) -> Parts:
  return {
    "robust_loss": null_class.robust_loss(s.ball),
    "attack": null_class.any_size(_pgd(s)),
    "augment": null_class.outliers(s.num_classes),
  }


def _regularised(make: Callable, number: float, meaning: str) -> Recipe:
  return Recipe(
    lambda s: _standard(regulariser=make(s.number)), number, meaning
  )


def _augmented(make: Callable, number: float, meaning: str) -> Recipe:
  return Recipe(lambda s: _standard(augment=make(s)), number, meaning)


def _bounded(module: Any, num_classes: int) -> nn.Module:
  del num_classes
  return module.clone(activation=models.bounded_relu)


def _members(module: nn.Module, num_classes: int) -> nn.Module:
  del num_classes
  return ensembles.Ensemble(member=module, num_members=_NUM_MEMBERS)


RECIPES: dict[str, Recipe] = {
  "none": Recipe(lambda s: _standard()),
  # Adversarial training.
  "fgsm_mixture": Recipe(
    lambda s: {
      "robust_loss": robust_losses.mixture(s.number),
      "attack": _fgsm(s),
    },
    0.5,
    "share of the clean loss",
  ),
  "pgd": Recipe(lambda s: _madry(_pgd(s))),
  "fast": Recipe(
    lambda s: _madry(
      adversaries.rs_fgsm(s.ball, step_size=s.number * s.ball.eps)
    ),
    1.25,
    "step size in units of eps",
  ),
  "n_fgsm": Recipe(
    lambda s: _madry(adversaries.n_fgsm(s.ball, noise=s.number)),
    2.0,
    "radius of the noise in units of eps",
  ),
  "grad_align": Recipe(
    lambda s: _madry(
      _fgsm(s),
      regulariser=regularisers.gradient_alignment(s.ball, s.number),
    ),
    0.2,
    "weight of the alignment",
  ),
  "free": Recipe(lambda s: {}, 8, "replays of a batch"),
  "ensemble_at": Recipe(
    _ensemble_at, 0.5, "share of the clean loss", helpers=1
  ),
  "trades": Recipe(_trades, _BETA, "beta"),
  "mart": Recipe(_mart, 6.0, "beta"),
  "awp": Recipe(
    lambda s: (
      _with_pgd(s, training.madry) | {"perturb_weights": weights.awp(s.number)}
    ),
    1e-2,
    "gamma",
  ),
  "trades_awp": Recipe(_trades_awp, 5e-3, "gamma"),
  "fat": Recipe(_friendly, 3, "largest tau"),
  # Regularisers.
  "alp": Recipe(
    lambda s: _with_pgd(s, robust_losses.logit_pairing(s.number)),
    0.5,
    "weight of the pairing",
  ),
  "clp": Recipe(
    lambda s: _standard(
      regulariser=regularisers.clean_logit_pairing(s.number),
      augment=_noise(_SIGMA),
    ),
    0.5,
    "weight of the pairing",
  ),
  "logit_squeezing": Recipe(
    lambda s: {
      "robust_loss": robust_losses.logit_squeezing(s.number),
      "augment": _noise(_SIGMA),
    },
    0.5,
    "weight of the norm",
  ),
  "label_smoothing": _augmented(
    lambda s: mixing.label_smoothing(s.num_classes, smoothing=s.number),
    0.1,
    "smoothing",
  ),
  "gaussian": _augmented(lambda s: _noise(s.number), 0.25, "sigma"),
  "mixup": _augmented(
    lambda s: mixing.mixup(s.num_classes, alpha=s.number), 1.0, "alpha"
  ),
  "cutmix": _augmented(
    lambda s: mixing.cutmix(s.num_classes, alpha=s.number), 1.0, "alpha"
  ),
  "input_gradient": _regularised(regularisers.input_gradient, 1.0, "weight"),
  "jacobian": _regularised(regularisers.jacobian, 0.01, "weight"),
  "curvature": _regularised(regularisers.curvature, 4.0, "weight"),
  "vat": _regularised(
    regularisers.virtual_adversarial,
    1.0,
    "Euclidean length of the perturbation",
  ),
  "bounded_relu": Recipe(lambda s: _standard(), module=_bounded),
  # Distillation.
  "teacher": Recipe(
    lambda s: {"robust_loss": distillation.tempered(s.number)},
    100.0,
    "temperature",
  ),
  "distillation": Recipe(
    lambda s: {
      "robust_loss": distillation.defensive(s.number),
      "augment": distillation.taught(s.helpers[0], s.number),
    },
    100.0,
    "temperature",
    helpers=1,
  ),
  "ard": Recipe(_ard, 30.0, "temperature", helpers=1),
  # Ensembles of members that are trained together.
  "ensemble": Recipe(
    lambda s: {"robust_loss": robust_losses.adp(0.0, 0.0)}, module=_members
  ),
  "adp": Recipe(
    lambda s: {"robust_loss": robust_losses.adp(s.number)},
    2.0,
    "alpha",
    module=_members,
  ),
  "null_class": Recipe(
    _null_class,
    module=lambda module, num_classes: module.clone(
      num_classes=num_classes + 1
    ),
    loss_fn=null_class.wrong_margin,
    criterion=null_class.fooled,
  ),
}
