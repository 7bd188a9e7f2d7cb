"""Szegedy's L-BFGS attack: cross-entropy of a target against the distance.

Other programs hand each c of the search to SciPy's L-BFGS-B, one example at a
time. Here every question to the model is one step of a kernel: a quasi-Newton
step projected onto the bounds, tried shorter and shorter until the objective
has fallen enough, for each row on its own.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxadv import checks, criteria, losses, norms, numerics, oracles, types
from jaxadv.attacks import binary_search, minimum_norm, penalised

Array = jax.Array
Partial = jax.tree_util.Partial

_OPTIMIZER = optax.scale_by_lbfgs(memory_size=10)
_PLAN = binary_search.Plan(9, 100, 1e-2, abort_early=False)
# Armijo's share of the promised fall, and how a step that misses it shrinks.
_ENOUGH, _SHRINK = 1e-4, 0.5
# A search is over where a step lowers the objective by less than this share of
# it (SciPy's factor 1e7 is 2e-9 in float64: 10 units of the last place here),
# or where one so much shorter than the first still does not.
_FALL, _SHORTEST = 1e-6, 2.0**-15


class State(NamedTuple):
  """The rows of a search (see `types.State`)."""

  x: Array
  y: types.PyTree
  keys: Array
  step: Array
  search: binary_search.Search
  point: Array  # Where the model is asked next.
  base: Array  # The last point that was accepted.
  value: Array  # The objective there; infinite before the first answer.
  grad: Array  # Its gradient there.
  direction: Array  # From there.
  length: Array  # The step along it that leads to `point`.
  memory: Any  # Of the quasi-Newton method.
  distance: Array  # That of `x_adv`; infinite before the first success.
  x_adv: Array
  found: Array
  done: Array


def lbfgs(
  *,
  plan: binary_search.Plan = _PLAN,
  loss_fn: types.LossFn = losses.targeted_cross_entropy,
  criterion: types.Criterion = criteria.classified_as,
  bounds: penalised.Bounds = (0.0, 1.0),
) -> types.Attack:
  """The L-BFGS attack, a targeted minimum-norm attack; y is the target.

  Minimises `||x' - x||_2^2 - c * loss` inside the bounds, from x, for each c of
  a binary search of the row's own; the loss of the paper is minus the
  cross-entropy of the target. A search wins if the point that it ends with
  does: the least c that wins gives the nearest adversarial example.

  Each search is projected L-BFGS: the direction is the quasi-Newton one in the
  coordinates that the bounds do not hold back; the point is clipped; and a step
  that does not lower the objective by 1e-4 of what the gradient promises is
  tried again at half the length. A search ends after `plan.num_steps` questions
  or where the objective stands still to 1e-6 of itself.

  The result is the point of least L2 distance to x that won, among all that the
  model was asked about. A row that is won at x is done with distance 0; a row
  without success keeps its clean input.

  The paper gives no numbers. 9 searches of 100 steps with c from 0.01 are
  advertorch's, where a step is an iteration, which may ask more than once; the
  memory of 10 past steps is SciPy's.

  Args:
    plan: The search for c.
    loss_fn: Smooth, higher where the attacker is nearer to his goal.
      `losses.cross_entropy` with `criteria.misclassified` makes the attack
      untargeted.
    criterion: When a point counts, of `(logits, y)`.
    bounds: The range of inputs.

  Raises:
    TypeError: `plan` is none, or a number in it is not an integer.
    ValueError: a number is out of its range, or the bounds are not a range.

  Reference: Szegedy et al., "Intriguing properties of neural networks", 2014.
  """
  binary_search.check(plan)
  checks.bounds(bounds)
  return types.Attack(
    init=Partial(_init, plan),
    step=Partial(
      _step, plan, bounds, types.hashable(loss_fn), types.hashable(criterion)
    ),
    num_steps=plan.num_searches * plan.num_steps,
    threat=types.threat(None, bounds, criterion),
  )


def _init(plan, keys, x, y) -> State:
  num_rows = x.shape[0]
  zeros = jnp.zeros(x.shape, numerics.wide_type(x))
  return State(
    **minimum_norm.start(x),
    y=y,
    keys=keys,
    search=binary_search.start(plan, num_rows, zeros.dtype),
    point=x,
    base=x,
    value=jnp.full(num_rows, jnp.inf, zeros.dtype),
    grad=zeros,
    direction=zeros,
    length=jnp.ones(num_rows, zeros.dtype),
    memory=jax.vmap(_no_memory)(zeros),
  )


def _step(
  plan, bounds, loss_fn, criterion, logits_fn, state
) -> tuple[State, types.PyTree]:
  x, search = state.x, state.search
  keys = oracles.step_keys(state.keys, state.step)
  answer = oracles.loss_and_gradient(
    logits_fn, loss_fn, keys, state.point, state.y
  )
  won = oracles.satisfied(criterion, answer.outputs, state.y)
  delta = penalised.perturbation(x, state.point)
  distance = jax.vmap(norms.L2)(delta)
  value = jnp.square(distance) - search.c * answer.loss.astype(distance.dtype)
  grad = 2 * delta - penalised.pull(search.c, answer)
  fresh = search.step == 0
  accepted = fresh | (value <= state.value + _ENOUGH * _promise(state))
  still = state.value - value <= _FALL * jnp.abs(value)
  converged = jnp.where(accepted, still, state.length <= _SHORTEST)
  # A search has won if the point that it ends with does.
  search = binary_search.advance(
    plan,
    search._replace(won=jnp.zeros_like(won)),
    jnp.where(accepted, won, search.won),
    jnp.where(accepted, value, state.value),
    ~fresh & converged,
  )
  turned = jax.vmap(_turn, (None, 0, 0, 0, 0))(
    bounds, state, fresh, value, grad
  )
  shorter = state._replace(length=_SHRINK * state.length)
  state = oracles.choose(accepted, turned, shorter)
  state = minimum_norm.keep_nearest(state, state.point, won, distance)
  state = state._replace(
    search=search,
    point=oracles.choose(search.step == 0, x, _next_point(bounds, state)),
    done=(state.distance == 0) | binary_search.finished(plan, search),
  )
  return state, answer.outputs


def _no_memory(point: Array) -> Any:
  memory = _OPTIMIZER.init(point)
  # Of the default type, which may be another.
  weights = memory.weights_memory.astype(point.dtype)
  return memory._replace(weights_memory=weights)


def _promise(state: State) -> Array:
  """By how much the gradient says that the objective changes, at most 0."""
  change = penalised.perturbation(state.base, state.point)
  return jnp.minimum(jax.vmap(jnp.vdot)(state.grad, change), 0.0)


def _turn(bounds, state: State, fresh, value, grad) -> State:
  """Takes the point of ONE row for its base, with a new direction."""
  low, high = bounds
  held = ((state.point <= low) & (grad > 0)) | (
    (state.point >= high) & (grad < 0)
  )
  grad_free = jnp.where(held, 0.0, grad)
  # What is held back neither moves nor changes its gradient, for the memory:
  # the method works in the space of the others, where its matrix is positive
  # as long as the curvature is.
  moved = penalised.perturbation(state.base, state.point)
  moved = jnp.where(held, 0.0, moved)
  changed = jnp.where(held, 0.0, grad - state.grad)
  point = state.point.astype(moved.dtype)
  known = state.memory._replace(
    params=point - moved, updates=grad_free - changed
  )
  forgets = fresh | (jnp.vdot(moved, changed) <= 0)
  memory = jax.tree.map(
    lambda new, old: jnp.where(forgets, new, old),
    _no_memory(point),
    known,
  )
  uphill, memory = _OPTIMIZER.update(grad_free, memory, point)
  return state._replace(
    base=state.point,
    value=value,
    grad=grad,
    direction=jnp.where(held, 0.0, -uphill),
    length=jnp.ones_like(state.length),
    memory=memory,
  )


def _next_point(bounds, state: State) -> Array:
  change = jax.vmap(jnp.multiply)(state.length, state.direction)
  return minimum_norm.inside(state.base, change, bounds)
