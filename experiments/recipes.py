"""The defences that `--defence` can name: name -> the parts of a training step.

A row says what a paper's method passes to `training.train_step`, and the value
of the one number that it tunes, which `--number` overrides.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from flax import linen as nn

from experiments import parts
from jaxadv import criteria, losses, models, types
from jaxadv.data import mixing
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

# Of an ensemble, as in the code of Pang et al. (2019).
_NUM_MEMBERS = 3


class Recipe(NamedTuple):
  """A row of the table.

  Attributes:
    build: Makes the keywords of `training.train_step`.
    number: What it tunes, of its paper where nothing else is said; None where
      it tunes nothing, an int where only whole numbers will do.
    meaning: What that number is.
    helpers: How many trained models it needs, at least.
    module: Makes its network of the plain one and the number of classes.
    loss_fn: What attacks of the evaluation maximise.
    criterion: What counts as fooled in the evaluation.
  """

  build: Callable[[parts.Setting], parts.Parts]
  number: float | None = None
  meaning: str = ""
  helpers: int = 0
  module: Callable[[Any, int], nn.Module] = lambda module, num_classes: module
  loss_fn: types.LossFn = losses.cross_entropy
  criterion: types.Criterion = criteria.misclassified


def _regularised(make: Callable, number: float, meaning: str) -> Recipe:
  return Recipe(
    lambda s: parts.standard(regulariser=make(s.number)), number, meaning
  )


def _augmented(make: Callable, number: float, meaning: str) -> Recipe:
  return Recipe(lambda s: parts.standard(augment=make(s)), number, meaning)


def _bounded(module: Any, num_classes: int) -> nn.Module:
  del num_classes
  return module.clone(activation=models.bounded_relu)


def _members(module: nn.Module, num_classes: int) -> nn.Module:
  del num_classes
  return ensembles.Ensemble(member=module, num_members=_NUM_MEMBERS)


RECIPES: dict[str, Recipe] = {
  "none": Recipe(lambda s: parts.standard()),
  # Adversarial training.
  "fgsm_mixture": Recipe(
    lambda s: {
      "robust_loss": robust_losses.mixture(s.number),
      "attack": parts.fgsm(s),
    },
    0.5,
    "share of the clean loss",
  ),
  "pgd": Recipe(lambda s: parts.madry(parts.pgd(s))),
  "fast": Recipe(
    lambda s: parts.madry(
      adversaries.rs_fgsm(s.ball, step_size=s.number * s.ball.eps)
    ),
    1.25,
    "step size in units of eps",
  ),
  "n_fgsm": Recipe(
    lambda s: parts.madry(adversaries.n_fgsm(s.ball, noise=s.number)),
    2.0,
    "radius of the noise in units of eps",
  ),
  "grad_align": Recipe(
    lambda s: parts.madry(
      parts.fgsm(s),
      regulariser=regularisers.gradient_alignment(s.ball, s.number),
    ),
    0.2,
    "weight of the alignment",
  ),
  "free": Recipe(lambda s: {}, 8, "replays of a batch"),
  "ensemble_at": Recipe(
    parts.ensemble_at, 0.5, "share of the clean loss", helpers=1
  ),
  "trades": Recipe(parts.trades, parts.BETA, "beta"),
  "mart": Recipe(parts.mart, 6.0, "beta"),
  "awp": Recipe(
    lambda s: (
      parts.with_pgd(s, training.madry)
      | {"perturb_weights": weights.awp(s.number)}
    ),
    1e-2,
    "gamma",
  ),
  "trades_awp": Recipe(parts.trades_awp, 5e-3, "gamma"),
  # 3 with TRADES; both of the authors' code.
  "fat": Recipe(parts.fat, 2, "largest tau"),
  # Regularisers.
  "alp": Recipe(
    lambda s: parts.with_pgd(s, robust_losses.logit_pairing(s.number)),
    0.5,
    "weight of the pairing",
  ),
  "clp": Recipe(
    lambda s: parts.standard(
      regulariser=regularisers.clean_logit_pairing(s.number),
      augment=parts.noise(parts.SIGMA),
    ),
    0.5,
    "weight of the pairing",
  ),
  "logit_squeezing": Recipe(
    lambda s: {
      "robust_loss": robust_losses.logit_squeezing(s.number),
      "augment": parts.noise(parts.SIGMA),
    },
    0.5,
    "weight of the norm",
  ),
  "label_smoothing": _augmented(
    lambda s: mixing.label_smoothing(s.num_classes, smoothing=s.number),
    0.1,
    "smoothing",
  ),
  # One of the levels of Cohen et al. (2019) for CIFAR-10, who do not clip.
  "gaussian": _augmented(lambda s: parts.noise(s.number, None), 0.25, "sigma"),
  "mixup": _augmented(
    lambda s: mixing.mixup(s.num_classes, alpha=s.number), 1.0, "alpha"
  ),
  "cutmix": _augmented(
    lambda s: mixing.cutmix(s.num_classes, alpha=s.number), 1.0, "alpha"
  ),
  # Our own choice, as papers tune it for each data set; so is that of vat.
  "input_gradient": _regularised(regularisers.input_gradient, 1.0, "weight"),
  "jacobian": _regularised(regularisers.jacobian, 0.01, "weight"),
  "curvature": _regularised(regularisers.curvature, 4.0, "weight"),
  "vat": _regularised(
    regularisers.virtual_adversarial,
    1.0,
    "Euclidean length of the perturbation",
  ),
  "bounded_relu": Recipe(lambda s: parts.standard(), module=_bounded),
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
  "ard": Recipe(parts.ard, 30.0, "temperature", helpers=1),
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
    parts.null,
    module=lambda module, num_classes: module.clone(
      num_classes=num_classes + 1
    ),
    loss_fn=null_class.wrong_margin,
    criterion=null_class.fooled,
  ),
}
