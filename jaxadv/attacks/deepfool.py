"""DeepFool: the nearest linearised decision boundary, again and again."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxadv import checks, criteria, norms, oracles, types
from jaxadv.attacks import boundaries

Array = jax.Array
Bounds = tuple[types.Scalar, types.Scalar]
Partial = jax.tree_util.Partial

# Added to every distance, as in the authors' program: on the boundary itself
# the distance is zero and the row would never cross.
_EXTRA = 1e-4


class State(NamedTuple):
  """The rows of a DeepFool search (see `types.State`)."""

  x: Array
  y: Array
  keys: Array
  step: Array
  point: Array
  total: Array  # The sum of all steps, without overshoot and clipping.
  x_adv: Array
  found: Array
  done: Array


def deepfool(
  norm: norms.Norm,
  *,
  num_steps: int = 50,
  num_candidates: int = 10,
  overshoot: types.Scalar = 0.02,
  criterion: types.Criterion = criteria.misclassified,
  bounds: Bounds = (0.0, 1.0),
) -> types.Attack:
  """DeepFool, a minimum-norm attack: few steps, a good and not the best answer.

  With `f_k = z_k - z_y` it moves to the class k of least distance
  `|f_k| / ||grad f_k||_dual`, by that distance (and 1e-4) in the direction that
  is steepest in the norm. The steps add up to `total`; the next point, which
  the model is asked about and which is the result if it wins, is
  `clip(x + (1 + overshoot) * total)`. A row stops where the criterion holds; a
  row without success keeps its clean input.

  50 steps, 10 candidates and overshoot 0.02 are those of the authors' program
  (the paper looks at all classes). The candidates are the likeliest classes at
  the current point. A step costs one forward pass and `num_candidates` backward
  passes; one more step than `num_steps` asks about the last point.

  Args:
    norm: `norms.L2` and `norms.Linf` are the paper's.
    num_steps: Most moves per row.
    num_candidates: Classes looked at, the label included.
    overshoot: The share by which the sum of the steps is exceeded.
    criterion: When to stop, of `(logits, label)`.
    bounds: The range of inputs.

  Raises:
    TypeError: `norm` is none; `num_steps` or `num_candidates` is not an
      integer.
    ValueError: `num_steps` is below 1, `num_candidates` below 2, `overshoot`
      negative, or the bounds are not a range.

  Reference: Moosavi-Dezfooli, Fawzi, Frossard, "DeepFool: a simple and accurate
  method to fool deep neural networks", 2016.
  """
  checks.norm(norm)
  checks.num_steps(num_steps)
  checks.non_negative("overshoot", overshoot)
  checks.bounds(bounds)
  return types.Attack(
    init=Partial(_init),
    step=Partial(
      _step,
      norm,
      types.hashable(boundaries.Likeliest(num_candidates)),
      overshoot,
      bounds,
      types.hashable(criterion),
    ),
    num_steps=num_steps + 1,
    threat=types.threat(None, bounds, criterion),
    backwards=num_candidates,
  )


def _init(keys, x, y) -> State:
  rows = jnp.zeros(x.shape[0], bool)
  return State(
    x=x,
    y=y,
    keys=keys,
    step=jnp.zeros(x.shape[0], jnp.int32),
    point=x,
    total=jnp.zeros_like(x),
    x_adv=x,
    found=rows,
    done=rows,
  )


def _step(
  norm, candidates, overshoot, bounds, criterion, logits_fn, state
) -> tuple[State, types.PyTree]:
  keys = oracles.step_keys(state.keys, state.step)
  boundary = boundaries.nearest(
    norm, candidates, logits_fn, keys, state.point, state.y
  )
  found = oracles.satisfied(criterion, boundary.outputs, state.y)
  move = jax.vmap(_onto, in_axes=(None, 0, 0))
  total = state.total + move(norm, boundary.lead, boundary.normal)
  moved = state.x + (1 + overshoot) * total
  state = state._replace(
    step=state.step + 1,
    point=jnp.clip(moved, *bounds).astype(state.x.dtype),
    total=total,
    x_adv=oracles.choose(found, state.point, state.x_adv),
    found=found,
    done=found,
  )
  return state, boundary.outputs


def _onto(norm, lead: Array, normal: Array) -> Array:
  direction = norm.ball(1.0).steepest(normal)
  rate = jnp.sum(normal * direction)
  # A lead that is not a number moves nothing.
  known = (rate > 0) & jnp.isfinite(lead)
  distance = jnp.abs(lead) / jnp.where(known, rate, 1.0) + _EXTRA
  step = jnp.where(known, distance, 0.0) * direction
  return step.astype(normal.dtype)
