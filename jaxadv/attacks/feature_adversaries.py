"""Feature adversaries: an input that looks like one image inside another."""

from jaxadv import criteria, losses, types
from jaxadv.attacks import ascent, gradient


def feature_adversaries(
  ball: types.Ball,
  *,
  num_steps: int = 100,
  step_size: types.Scalar,
  start: ascent.Start = ascent.at_input,
  criterion: types.Criterion = criteria.never,
  bounds: ascent.Bounds = (0.0, 1.0),
) -> types.Attack:
  """Makes the features of x those of a guide image, within the ball.

  Minimises `||f(x') - y||^2` over x' in the ball and the bounds by `pgd`. In
  place of the logits the model returns its features f, an array [B, ...] or a
  pytree of such arrays (several layers at once), and y holds the guide's:

    features_fn = models.bind(features, variables)
    y = features_fn(keys, guides)
    engine.run(attack, features_fn, key, x, y)

  The paper takes eps 10/255 in Linf and L-BFGS-B; 100 signed steps are ART's.
  For another step rule compose `attacks.projected_gradient` with the same loss,
  `losses.closeness`.

  Args:
    ball: The perturbation set; `balls.Linf(10 / 255)` is the paper's.
    num_steps: Gradients per row.
    step_size: The length of a step in the ball's norm.
    start: The first perturbation; none by default.
    criterion: When to stop, of `(features, y)` of ONE example.
    bounds: The range of inputs.

  Raises:
    TypeError: `num_steps` is not an integer.
    ValueError: `num_steps` is below 1, `step_size` negative, or the bounds are
      not a range.

  Reference: Sabour, Cao, Faghri, Fleet, "Adversarial manipulation of deep
  representations", 2016.
  """
  return gradient.pgd(
    ball,
    num_steps=num_steps,
    step_size=step_size,
    start=start,
    loss_fn=losses.closeness,
    criterion=criterion,
    bounds=bounds,
  )
