"""SLIDE: sparse L1 descent, projected gradient ascent on few coordinates."""

from jaxadv import balls, checks, criteria, losses, types
from jaxadv.attacks import ascent, gradient


def sparse_l1_descent(
  eps: types.Scalar,
  *,
  num_steps: int = 10,
  step_size: types.Scalar | None = None,
  top_fraction: types.Scalar = 0.01,
  start: ascent.Start = ascent.at_input,
  loss_fn: types.LossFn = losses.cross_entropy,
  criterion: types.Criterion = criteria.misclassified,
  bounds: ascent.Bounds = (0.0, 1.0),
) -> types.Attack:
  """Sparse L1 descent: equal steps along the largest entries of the gradient.

  `delta <- P(delta + step_size * e / ||e||_1)`, with `e = sign(g)` on the
  `top_fraction` of the coordinates whose gradients g are largest in magnitude
  and 0 elsewhere, and P the exact projection onto the L1 ball and the bounds.
  That is `pgd` in `balls.L1(eps, top_fraction)`, under its own name.

  10 steps from the clean input along 1 % of the coordinates are what CleverHans
  and Foolbox ship; the step size, eps / 10, is CleverHans's (1 for eps = 10).

  Args:
    eps: The L1 radius.
    num_steps: Gradients per row.
    step_size: A length in L1; eps / 10 by default.
    top_fraction: The share of coordinates that a step moves, at least one; in
      (0, 1].
    start: The first perturbation.
    loss_fn: What to maximise.
    criterion: When to stop.
    bounds: The range of inputs.

  Raises:
    TypeError: `num_steps` is not an integer.
    ValueError: `num_steps` is below 1, `eps` or `step_size` is negative,
      `top_fraction` is not in (0, 1], or the bounds are not a range.

  Reference: Tramer, Boneh, "Adversarial training and robustness for multiple
  perturbations", 2019.
  """
  checks.positive("top_fraction", top_fraction)
  checks.at_most_one("top_fraction", top_fraction)
  ball = balls.L1(eps, top_fraction)
  return gradient.pgd(
    ball,
    num_steps=num_steps,
    step_size=eps / 10 if step_size is None else step_size,
    start=start,
    loss_fn=loss_fn,
    criterion=criterion,
    bounds=bounds,
  )
