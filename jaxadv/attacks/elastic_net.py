"""EAD: elastic-net attacks, whose perturbations are sparse (small in L1).

How it differs from other programs: one gradient per step serves the success
check too, so the candidates are the extrapolated points of FISTA, which are
clipped to the bounds, and not the shrunk ones between; every example has its
own search for c and early abort; a search that fails returns the clean input.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxadv import checks, criteria, losses, numerics, oracles, types
from jaxadv.attacks import binary_search, minimum_norm, penalised

Array = jax.Array
Partial = jax.tree_util.Partial
# `(beta, delta) -> []` for ONE example: what the best point has least of.
Rule = Callable[[types.Scalar, Array], Array]

_PLAN = binary_search.Plan()


class State(NamedTuple):
  """The rows of an elastic-net search (see `types.State`)."""

  x: Array
  y: types.PyTree
  keys: Array
  step: Array
  search: binary_search.Search
  shrunk: Array  # FISTA's iterate after the last shrinkage.
  point: Array  # Where the model is asked next: extrapolated, in the bounds.
  distance: Array  # By the rule, of `x_adv`; infinite before a success.
  x_adv: Array
  found: Array
  done: Array


def elastic(beta: types.Scalar, delta: Array) -> Array:
  """The EN rule: `||delta||_2^2 + beta * ||delta||_1`."""
  return jnp.sum(jnp.square(delta)) + beta * jnp.sum(jnp.abs(delta))


def least_l1(beta: types.Scalar, delta: Array) -> Array:
  """The L1 rule: `||delta||_1`."""
  del beta
  return jnp.sum(jnp.abs(delta))


def elastic_net(
  *,
  plan: binary_search.Plan = _PLAN,
  learning_rate: types.Scalar = 1e-2,
  beta: types.Scalar = 1e-3,
  rule: Rule = elastic,
  confidence: types.Scalar = 0.0,
  loss_fn: types.LossFn = losses.margin,
  criterion: types.Criterion = criteria.misclassified,
  bounds: penalised.Bounds = (0.0, 1.0),
) -> types.Attack:
  """EAD, a minimum-norm attack between L1 and L2.

  Minimises `||x' - x||_2^2 + c * max(0, confidence - loss)` and the L1 distance
  by FISTA, for each c of a binary search of the row's own. Step k = 0, 1, ...
  takes a gradient step from the extrapolated point, of length
  `learning_rate * sqrt(1 - k / num_steps)`; moves every coordinate `beta`
  nearer to x, and to x itself where it is no further; clips to the bounds; and
  extrapolates by `k / (k + 3)` of the change. As in the paper the shrinkage is
  `beta` whatever the step, so the weight of the L1 distance is
  `beta / learning_rate`, 0.1 with the defaults, and grows as the steps shrink.

  The result is the point of least distance by `rule` that won, among all that
  the model was asked about. A row that is won at x is done with distance 0; a
  row without success keeps its clean input.

  The defaults are those of the authors' program: 9 searches of at most 10,000
  steps, c from 1e-3, learning rate 0.01, beta 0.001, confidence 0, early abort.

  Args:
    plan: The search for c.
    learning_rate: The first gradient step.
    beta: The shrinkage of one step, in the units of the input.
    rule: How the best point is chosen: `elastic` or `least_l1`.
    confidence: By how much the loss must be positive; 0 leaves success to the
      criterion alone.
    loss_fn: A difference of logits, positive where the attacker has won:
      `losses.margin`, or `losses.targeted_margin` where y is the target.
    criterion: When a point counts, of `(logits, y)`.
    bounds: The range of inputs.

  Raises:
    TypeError: `plan` is none, or a number in it is not an integer.
    ValueError: a number is out of its range, or the bounds are not a range.

  Reference: Chen, Sharma, Zhang, Yi, Hsieh, "EAD: elastic-net attacks to deep
  neural networks via adversarial examples", 2018.
  """
  binary_search.check(plan)
  checks.positive("learning_rate", learning_rate)
  checks.non_negative("beta", beta)
  checks.non_negative("confidence", confidence)
  checks.bounds(bounds)
  return types.Attack(
    init=Partial(_init, plan),
    step=Partial(
      _step,
      plan,
      Partial(_fista, learning_rate, beta, bounds),
      beta,
      types.hashable(rule),
      confidence,
      types.hashable(loss_fn),
      types.hashable(criterion),
    ),
    num_steps=plan.num_searches * plan.num_steps,
    threat=types.threat(None, bounds, criterion),
  )


def _init(plan, keys, x, y) -> State:
  return State(
    **minimum_norm.start(x),
    y=y,
    keys=keys,
    search=binary_search.start(plan, x.shape[0], numerics.wide_type(x)),
    shrunk=x,
    point=x,
  )


def _step(
  plan, fista, beta, rule, confidence, loss_fn, criterion, logits_fn, state
) -> tuple[State, types.PyTree]:
  keys = oracles.step_keys(state.keys, state.step)
  answer = oracles.loss_and_gradient(
    logits_fn, loss_fn, keys, state.point, state.y
  )
  won = penalised.wins(criterion, confidence, answer, state.y)
  delta = penalised.perturbation(state.x, state.point)
  distance = jax.vmap(rule, (None, 0))(beta, delta)
  c, count = state.search.c, state.search.step
  missing = penalised.shortfall(confidence, answer)
  objective = jax.vmap(elastic, (None, 0))(beta, delta) + c * missing
  grad = 2 * delta - penalised.pull(jnp.where(missing > 0, c, 0.0), answer)
  moved = jax.vmap(fista)(
    count, count / plan.num_steps, grad, delta, state.x, state.shrunk
  )
  search = binary_search.advance(plan, state.search, won, objective)
  shrunk, point = oracles.choose(search.step == 0, (state.x, state.x), moved)
  state = minimum_norm.keep_nearest(state, state.point, won, distance)
  state = state._replace(
    search=search,
    shrunk=shrunk,
    point=point,
    done=(state.distance == 0) | binary_search.finished(plan, search),
  )
  return state, answer.outputs


def _fista(
  learning_rate, beta, bounds, count, share, grad, delta, x, before
) -> tuple[Array, Array]:
  moved = delta - learning_rate * jnp.sqrt(1 - share) * grad
  nearer = jnp.sign(moved) * jnp.maximum(jnp.abs(moved) - beta, 0.0)
  # Adding 0 leaves the other coordinates at x, exactly.
  shrunk = jnp.clip(x + nearer, *bounds).astype(x.dtype)
  momentum = count / (count + 3.0)
  point = jnp.clip(shrunk + momentum * (shrunk - before), *bounds)
  return shrunk, point.astype(x.dtype)
