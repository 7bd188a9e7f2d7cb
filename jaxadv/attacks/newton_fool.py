"""NewtonFool: Newton steps that lower the probability of the clean class.

Written in the log odds `lead = log((1 - p) / p)` of the label's probability p,
whose gradient has the direction of `-grad p` and keeps its digits where the
softmax is saturated: `||grad p|| = p (1 - p) ||grad lead||`.

Foolbox 3 takes sums of squares for the norms and ends far away; here they are
norms.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxadv import checks, criteria, norms, numerics, oracles, types

Array = jax.Array
Bounds = tuple[types.Scalar, types.Scalar]
Partial = jax.tree_util.Partial


class State(NamedTuple):
  """The rows of a NewtonFool search (see `types.State`)."""

  x: Array
  y: Array
  keys: Array
  step: Array
  point: Array
  x_adv: Array
  found: Array
  done: Array


def newton_fool(
  *,
  num_steps: int = 100,
  eta: types.Scalar = 0.01,
  criterion: types.Criterion = criteria.misclassified,
  bounds: Bounds = (0.0, 1.0),
) -> types.Attack:
  """NewtonFool, a minimum-norm attack (L2): short steps, stops at a success.

  With p the probability of the label and g its gradient at the point,

    theta = min(eta * ||x|| * ||g||, p - 1 / C)
    point <- clip(point - theta * g / ||g||^2)

  so no step is longer than `eta * ||x||`, x being the clean input, or goes, by
  Newton's method, below a probability of 1 / C. A row stops where the criterion
  holds; one without success keeps its clean input. The distance exceeds that of
  the boundary along the way by one step at most: a smaller `eta` with more
  steps comes nearer. An input that is zero everywhere has no step length.

  100 steps and eta 0.01 are those of ART and Foolbox. One more step than
  `num_steps` asks about the last point.

  Args:
    num_steps: Most moves per row.
    eta: The longest step, as a share of the length of the input.
    criterion: When to stop, of `(logits, label)`.
    bounds: The range of inputs.

  Raises:
    TypeError: `num_steps` is not an integer.
    ValueError: `num_steps` is below 1, `eta` is not positive, or the bounds are
      not a range.

  Reference: Jang, Wu, Jha, "Objective metrics and gradient descent algorithms
  for adversarial examples in machine learning", 2017.
  """
  checks.num_steps(num_steps)
  checks.positive("eta", eta)
  checks.bounds(bounds)
  return types.Attack(
    init=Partial(_init),
    step=Partial(_step, eta, bounds, types.hashable(criterion)),
    num_steps=num_steps + 1,
    threat=types.threat(None, bounds, criterion),
  )


def _init(keys, x, y) -> State:
  rows = jnp.zeros(x.shape[0], bool)
  return State(
    x=x,
    y=y,
    keys=keys,
    step=jnp.zeros(x.shape[0], jnp.int32),
    point=x,
    x_adv=x,
    found=rows,
    done=rows,
  )


def _step(
  eta, bounds, criterion, logits_fn, state: State
) -> tuple[State, types.PyTree]:
  keys = oracles.step_keys(state.keys, state.step)
  answer = oracles.loss_and_gradient(
    logits_fn, _lead, keys, state.point, state.y
  )
  found = oracles.satisfied(criterion, answer.outputs, state.y)
  num_classes = oracles.mean_logits(answer.outputs).shape[-1]
  move = jax.vmap(_move, in_axes=(None, None, 0, 0, 0))
  step = move(eta, num_classes, state.x, answer.loss, answer.grad)
  moved = jnp.clip(state.point + step, *bounds)
  state = state._replace(
    step=state.step + 1,
    point=moved.astype(state.x.dtype),
    x_adv=oracles.choose(found, state.point, state.x_adv),
    found=found,
    done=found,
  )
  return state, answer.outputs


def _lead(logits: Array, label: Array) -> Array:
  """The log odds against the label."""
  is_label = jnp.arange(logits.shape[-1]) == label
  others = jax.nn.logsumexp(jnp.where(is_label, -jnp.inf, logits))
  return others - logits[label]


def _move(eta, num_classes: int, x: Array, lead: Array, grad: Array) -> Array:
  dtype = numerics.wide_type(x)
  grad, lead = grad.astype(dtype), lead.astype(dtype)
  probability = jax.nn.sigmoid(-lead)
  excess = jnp.maximum(probability - 1 / num_classes, 0.0)
  slope = probability * jax.nn.sigmoid(lead) * norms.L2(grad)
  longest = eta * norms.L2(x.astype(dtype))
  # A slope that underflows promises nothing: it does not shorten the step.
  newton = jnp.where(slope > 0, excess / slope, jnp.inf)
  length = jnp.where(excess > 0, jnp.minimum(longest, newton), 0.0)
  return length * numerics.unit_l2(grad)
