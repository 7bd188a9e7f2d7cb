"""Evasion attacks: factories that return a `types.Attack`."""

from jaxadv.attacks.alma import alma
from jaxadv.attacks.ascent import (
  at_input,
  in_ball,
  in_bounds,
  projected_gradient,
)
from jaxadv.attacks.auto_pgd import auto_pgd
from jaxadv.attacks.auto_pgd_l1 import auto_pgd_l1
from jaxadv.attacks.combinators import eot, multi_targeted, restarts
from jaxadv.attacks.ddn import ddn
from jaxadv.attacks.deepfool import deepfool
from jaxadv.attacks.fab import fab, fab_t
from jaxadv.attacks.fast_minimum_norm import fmn, fmn_l0
from jaxadv.attacks.goal_image import goal_image
from jaxadv.attacks.gradient import (
  adam_pgd,
  basic_iterative,
  fgsm,
  mi_fgsm,
  ni_fgsm,
  pgd,
  r_fgsm,
)
from jaxadv.attacks.sigma_zero import sigma_zero
from jaxadv.attacks.sparse_l1_descent import sparse_l1_descent
from jaxadv.attacks.square import square

__all__ = [
  "adam_pgd",
  "alma",
  "at_input",
  "auto_pgd",
  "auto_pgd_l1",
  "basic_iterative",
  "ddn",
  "deepfool",
  "eot",
  "fab",
  "fab_t",
  "fgsm",
  "fmn",
  "fmn_l0",
  "goal_image",
  "in_ball",
  "in_bounds",
  "mi_fgsm",
  "multi_targeted",
  "ni_fgsm",
  "pgd",
  "projected_gradient",
  "r_fgsm",
  "restarts",
  "sigma_zero",
  "sparse_l1_descent",
  "square",
]
