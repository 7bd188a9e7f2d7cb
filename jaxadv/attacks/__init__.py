"""Evasion attacks: factories that return a `types.Attack`."""

from jaxadv.attacks import binary_search
from jaxadv.attacks.alma import alma
from jaxadv.attacks.ascent import (
  at_centre,
  at_input,
  in_ball,
  in_bounds,
  projected_gradient,
)
from jaxadv.attacks.auto_conjugate_gradient import auto_conjugate_gradient
from jaxadv.attacks.auto_pgd import auto_pgd
from jaxadv.attacks.auto_pgd_l1 import auto_pgd_l1
from jaxadv.attacks.brendel_bethge import brendel_bethge
from jaxadv.attacks.carlini_wagner import carlini_wagner
from jaxadv.attacks.carlini_wagner_l0 import carlini_wagner_l0
from jaxadv.attacks.carlini_wagner_linf import carlini_wagner_linf
from jaxadv.attacks.combinators import eot, multi_targeted, restarts, within
from jaxadv.attacks.ddn import ddn
from jaxadv.attacks.deepfool import deepfool
from jaxadv.attacks.elastic_net import elastic, elastic_net, least_l1
from jaxadv.attacks.fab import fab, fab_t
from jaxadv.attacks.fast_minimum_norm import fmn, fmn_l0
from jaxadv.attacks.feature_adversaries import feature_adversaries
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
from jaxadv.attacks.jitter import jitter_pgd, noisy_loss
from jaxadv.attacks.jsma import jsma, jsma_single
from jaxadv.attacks.lbfgs import lbfgs
from jaxadv.attacks.newton_fool import newton_fool
from jaxadv.attacks.primal_dual import pdpgd, pdpgd_l0
from jaxadv.attacks.sigma_zero import sigma_zero
from jaxadv.attacks.sparse_l1_descent import sparse_l1_descent
from jaxadv.attacks.spatial import spatial_grid, spatial_random
from jaxadv.attacks.square import square
from jaxadv.attacks.st_adv import st_adv
from jaxadv.attacks.target_order import LikeliestTargets, NearestTargets
from jaxadv.attacks.virtual_adversarial import virtual_adversarial

__all__ = [
  "LikeliestTargets",
  "NearestTargets",
  "adam_pgd",
  "alma",
  "at_centre",
  "at_input",
  "auto_conjugate_gradient",
  "auto_pgd",
  "auto_pgd_l1",
  "basic_iterative",
  "binary_search",
  "brendel_bethge",
  "carlini_wagner",
  "carlini_wagner_l0",
  "carlini_wagner_linf",
  "ddn",
  "deepfool",
  "elastic",
  "elastic_net",
  "eot",
  "fab",
  "fab_t",
  "feature_adversaries",
  "fgsm",
  "fmn",
  "fmn_l0",
  "goal_image",
  "in_ball",
  "in_bounds",
  "jitter_pgd",
  "jsma",
  "jsma_single",
  "lbfgs",
  "least_l1",
  "mi_fgsm",
  "multi_targeted",
  "newton_fool",
  "ni_fgsm",
  "noisy_loss",
  "pdpgd",
  "pdpgd_l0",
  "pgd",
  "projected_gradient",
  "r_fgsm",
  "restarts",
  "sigma_zero",
  "sparse_l1_descent",
  "spatial_grid",
  "spatial_random",
  "square",
  "st_adv",
  "virtual_adversarial",
  "within",
]
