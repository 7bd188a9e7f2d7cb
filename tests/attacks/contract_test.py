"""The contract, for every attack in every ball. A new attack: one line."""

import pytest

from jaxadv import attacks, balls, criteria, losses, norms
from tests import contract, contract_checks

over_balls = contract.over_balls

# What wraps another attack sees no ball.
_LINF, _L2, _L1 = (balls.Linf,), (balls.L2,), (balls.L1,)
_TARGETED = {
  "loss_fn": losses.targeted_cross_entropy,
  "criterion": criteria.classified_as,
}
_PAIR = {
  "loss_fn": losses.targeted_dlr,
  "criterion": criteria.misclassified_pair,
}


def _pgd(ball, **parts):
  return attacks.pgd(ball, num_steps=3, step_size=ball.eps / 2, **parts)


ROWS = [
  *over_balls("fgsm", attacks.fgsm),
  *over_balls("r_fgsm", attacks.r_fgsm),
  *over_balls("pgd", _pgd),
  *over_balls(
    "pgd_targeted",
    lambda ball: _pgd(ball, **_TARGETED),
    _LINF,
    y=contract.target,
    won=criteria.classified_as,
  ),
  *over_balls(
    "basic_iterative",
    lambda ball: attacks.basic_iterative(
      ball, num_steps=3, step_size=ball.eps / 2
    ),
  ),
  *over_balls("mi_fgsm", lambda ball: attacks.mi_fgsm(ball, num_steps=3)),
  *over_balls("ni_fgsm", lambda ball: attacks.ni_fgsm(ball, num_steps=3)),
  *over_balls("adam_pgd", lambda ball: attacks.adam_pgd(ball, num_steps=3)),
  *over_balls("restarts", lambda ball: attacks.restarts(_pgd(ball), 2), _L2),
  *over_balls(
    "multi_targeted",
    lambda ball: attacks.multi_targeted(_pgd(ball, **_PAIR), 2),
    _LINF,
  ),
  *over_balls(
    "multi_targeted_malt",
    lambda ball: attacks.multi_targeted(
      _pgd(ball, **_PAIR), attacks.NearestTargets(2, norms.Linf)
    ),
    _LINF,
    calls=2,
  ),
  contract.Row(
    "multi_targeted_nearest",
    lambda size: attacks.multi_targeted(
      attacks.fmn(
        norms.L2,
        num_steps=5,
        step_size=size,
        loss_fn=losses.difference,
        criterion=criteria.misclassified_pair,
      ),
      2,
      size_fn=norms.L2,
    ),
    (1.0, 0.5),
  ),
  *over_balls("eot", lambda ball: attacks.eot(_pgd(ball), 2), _L1),
  contract.Row(
    "goal_image",
    lambda rate: attacks.goal_image(num_steps=20, learning_rate=rate),
    (1.0, 0.5),
    y=contract.goal,
    won=criteria.resembles,
  ),
  *over_balls(
    "auto_pgd",
    lambda ball: attacks.auto_pgd(ball, num_steps=3),
    (balls.Linf, balls.L2),
  ),
  *over_balls(
    "auto_conjugate_gradient",
    lambda ball: attacks.auto_conjugate_gradient(ball, num_steps=3),
    (balls.Linf, balls.L2),
  ),
  *over_balls(
    "jitter_pgd",
    lambda ball: attacks.jitter_pgd(ball, num_steps=3, step_size=ball.eps / 2),
    _LINF,
  ),
  *over_balls(
    "auto_pgd_l1",
    lambda ball: attacks.auto_pgd_l1(ball.eps, num_steps=5),
    _L1,
  ),
  contract.Row(
    "deepfool_l2",
    lambda share: attacks.deepfool(
      norms.L2, num_steps=5, num_candidates=4, overshoot=share
    ),
    (0.02, 0.1),
    ample=0.5,
  ),
  contract.Row(
    "fab_t_l1",
    lambda share: attacks.fab_t(
      norms.L1, num_steps=3, num_targets=2, num_restarts=2, alpha_max=share
    ),
    (0.1, 0.2),
    ample=0.1,
    calls=2,
  ),
  contract.Row(
    "fab_linf",
    lambda factor: attacks.fab(
      norms.Linf, num_steps=3, num_candidates=4, eta=factor
    ),
    (1.05, 1.2),
    ample=1.05,
    calls=2,
  ),
  contract.Row(
    "spatial_grid",
    lambda angle: attacks.spatial_grid(
      max_angle=angle, num_angles=3, num_shifts=3
    ),
    (30.0, 20.0),
  ),
  contract.Row(
    "spatial_random",
    lambda shift: attacks.spatial_random(max_shift=shift, num_samples=5),
    (3.0, 1.0),
  ),
  contract.Row(
    "st_adv",
    lambda pixels: attacks.st_adv(pixels, num_steps=10),
    (1.0, 0.5),
    ample=2.0,
  ),
  *over_balls("square", lambda ball: attacks.square(ball, num_queries=20)),
  contract.Row(
    "ddn",
    lambda size: attacks.ddn(num_steps=20, init_norm=size),
    (1.0, 0.5),
  ),
  contract.Row(
    "fmn_linf",
    lambda size: attacks.fmn(norms.Linf, num_steps=20, step_size=size),
    (1.0, 0.5),
  ),
  contract.Row(
    "fmn_l2",
    lambda size: attacks.fmn(norms.L2, num_steps=20, step_size=size),
    (1.0, 0.5),
  ),
  contract.Row(
    "fmn_l0",
    lambda size: attacks.fmn_l0(num_steps=20, step_size=size),
    (1.0, 0.5),
  ),
  contract.Row(
    "alma",
    lambda size: attacks.alma(norms.L2, num_steps=30, step_size=size),
    (0.1, 0.05),
  ),
  contract.Row(
    "alma_first_distance",
    lambda size: attacks.alma(norms.L1, num_steps=30, first_distance=size),
    (0.5, 0.2),
  ),
  contract.Row(
    "pdpgd_l1",
    lambda size: attacks.pdpgd(norms.L1, num_steps=20, step_size=size),
    (0.1, 0.05),
  ),
  contract.Row(
    "pdpgd_linf",
    lambda size: attacks.pdpgd(norms.Linf, num_steps=20, step_size=size),
    (0.1, 0.05),
  ),
  contract.Row(
    "pdpgd_l0",
    lambda size: attacks.pdpgd_l0(num_steps=20, step_size=size),
    (0.1, 0.05),
  ),
  contract.Row(
    "sigma_zero",
    lambda size: attacks.sigma_zero(num_steps=20, step_size=size),
    (1.0, 0.5),
  ),
  contract.Row(
    "jsma",
    lambda theta: attacks.jsma(theta=theta, gamma=1.0),
    (1.0, 0.5),
    y=contract.target,
    won=criteria.classified_as,
  ),
  contract.Row(
    "jsma_single",
    lambda theta: attacks.jsma_single(
      theta=theta, gamma=1.0, criterion=criteria.misclassified_pair
    ),
    (1.0, 0.5),
    y=contract.label_and_target,
    won=criteria.misclassified_pair,
  ),
  contract.Row(
    "newton_fool",
    lambda eta: attacks.newton_fool(num_steps=20, eta=eta),
    (0.05, 0.02),
  ),
  contract.Row(
    "virtual_adversarial",
    lambda eps: attacks.virtual_adversarial(eps, num_steps=3),
    (0.3, 0.2),
    ball=balls.L2,
    y=contract.clean_output,
    won=criteria.differs,
    ample=5.0,
  ),
  *over_balls(
    "feature_adversaries",
    lambda ball: attacks.feature_adversaries(
      ball,
      num_steps=5,
      step_size=ball.eps / 3,
      criterion=criteria.resembles,
    ),
    _LINF,
    y=contract.goal,
    won=criteria.resembles,
  ),
  contract.Row(
    "carlini_wagner",
    lambda rate: attacks.carlini_wagner(
      plan=attacks.binary_search.Plan(3, 10, 1.0), learning_rate=rate
    ),
    (0.1, 0.05),
  ),
  contract.Row(
    "carlini_wagner_linf",
    lambda rate: attacks.carlini_wagner_linf(
      num_searches=3, num_steps=10, c_range=(1.0, 20.0), learning_rate=rate
    ),
    (0.1, 0.05),
  ),
  contract.Row(
    "carlini_wagner_l0",
    lambda rate: attacks.carlini_wagner_l0(
      num_searches=3, num_steps=10, c_range=(1.0, 20.0), learning_rate=rate
    ),
    (0.2, 0.1),
  ),
  contract.Row(
    "elastic_net",
    lambda beta: attacks.elastic_net(
      plan=attacks.binary_search.Plan(3, 10, 1.0), beta=beta
    ),
    (0.001, 0.01),
  ),
  contract.Row(
    "lbfgs",
    lambda c: attacks.lbfgs(plan=attacks.binary_search.Plan(3, 10, c)),
    (1.0, 0.5),
    y=contract.target,
    won=criteria.classified_as,
  ),
  contract.Row(
    "brendel_bethge_l2",
    lambda rate: attacks.brendel_bethge(
      norms.L2, num_steps=20, learning_rate=rate
    ),
    (1e-3, 5e-4),
  ),
  contract.Row(
    "brendel_bethge_linf",
    lambda rate: attacks.brendel_bethge(
      norms.Linf, num_steps=20, learning_rate=rate
    ),
    (1e-3, 5e-4),
  ),
  *over_balls(
    "sparse_l1_descent",
    lambda ball: attacks.sparse_l1_descent(ball.eps),
    _L1,
  ),
]


@pytest.mark.parametrize(
  "row",
  [
    pytest.param(row, id=row.name, marks=pytest.mark.xdist_group(row.name))
    for row in ROWS
  ],
)
@pytest.mark.parametrize(
  "check",
  [
    pytest.param(c, id=c.__name__.removeprefix("check_"))
    for c in contract_checks.CHECKS
  ],
)
def test_contract(row, check):
  check(row)
