"""The goal-image attack: an input that looks so and is read otherwise."""

import jax
import optax

from jaxadv import balls, checks, criteria, losses, types
from jaxadv.attacks import ascent

Partial = jax.tree_util.Partial

_TO_GOAL = losses.squared_error()


def goal_image(
  *,
  num_steps: int = 1000,
  learning_rate: types.Scalar = 1.0,
  weight: types.Scalar = 0.05,
  start: ascent.Start = ascent.in_bounds,
  loss_fn: types.LossFn = _TO_GOAL,
  criterion: types.Criterion = criteria.resembles,
  bounds: ascent.Bounds = (0.0, 1.0),
) -> types.Attack:
  """Gradient descent to an image near `x` that gives the goal output `y`.

  Minimises `||y - f(x')||^2 / 2 + weight * ||x' - x||^2` over x' in the bounds,
  with `y` [C] the goal output (a one-hot row) and f the softmax. `weight` 0.05
  pulls towards x; 0 is the non-targeted form, where noise becomes an input that
  the network reads as the goal, whatever x shows. Start from noise
  (`ascent.in_bounds`) or from x itself (`ascent.at_input`). There is no radius:
  look at the record's distances.

  `num_steps` and `learning_rate` are those with which a 784-30-10 network was
  first shown this way (D. Geng and R. Veerapaneni, "Tricking neural networks:
  create your own adversarial examples", 2018). A row stops where the goal's
  class wins; `criteria.never` goes on to perfect the output.

  Args:
    num_steps: Gradients per row.
    learning_rate: The length of a step, as a multiple of the gradient.
    weight: The pull towards x.
    start: The first perturbation.
    loss_fn: What to maximise; `losses.squared_error` of other outputs.
    criterion: When a row stops, of `(logits, y)`.
    bounds: The range of inputs.

  Raises:
    TypeError: `num_steps` is not an integer.
    ValueError: `num_steps` is below 1, `learning_rate` is not positive,
      `weight` is negative, or the bounds are not a range.
  """
  checks.non_negative("weight", weight)
  checks.positive("learning_rate", learning_rate)
  attack = ascent.projected_gradient(
    balls.Linf(float("inf")),
    Partial(_pulled_descent, weight, learning_rate),
    num_steps=num_steps,
    start=start,
    loss_fn=loss_fn,
    criterion=criterion,
    bounds=bounds,
  )
  return attack._replace(threat=attack.threat._replace(ball=None))


def _pulled_descent(weight, learning_rate):
  # The optimiser's parameters are x' - x, so weight decay is the pull.
  return optax.chain(
    optax.add_decayed_weights(2 * weight), optax.sgd(learning_rate)
  )
