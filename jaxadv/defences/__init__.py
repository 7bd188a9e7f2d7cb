"""Defences, by kind (see `docs/design.md`): functions, not classes.

Training is one step composed of parts, `training.train_step` (`free` has its
own), with parts from `robust_losses`, `adversaries`, `regularisers` and
`weights`; `distillation`, `ensembles` and `null_class` hold what those methods
need of each kind. `monitors` watches. Data transformations are in
`jaxadv.data.mixing` and `jaxadv.data.augment`.
"""

from jaxadv.defences import (
  adversaries,
  distillation,
  ensembles,
  free,
  monitors,
  null_class,
  regularisers,
  robust_losses,
  training,
  weights,
)

__all__ = [
  "adversaries",
  "distillation",
  "ensembles",
  "free",
  "monitors",
  "null_class",
  "regularisers",
  "robust_losses",
  "training",
  "weights",
]
