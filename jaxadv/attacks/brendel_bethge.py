"""Brendel and Bethge's attack: along the decision boundary towards the input.

A row goes through three stages, told apart by its count `stage`; each asks for
one loss and gradient a step:

  -1        looking for a start: an input, far away, that wins
  0 ... 9   halving the way from the clean input to the start
  10 ...    walking along the boundary

How it differs from the authors' program in Foolbox: the trust region belongs to
each example (theirs grows with the batch); the search for a start follows the
gradient over the boundary (theirs blends in uniform noise, which leads to the
boundary of one class, and fails for inputs of that class); one budget covers
all stages; the step is solved by bisection (`trust_region`).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxadv import (
  checks,
  criteria,
  losses,
  norms,
  numerics,
  oracles,
  projections,
  types,
)
from jaxadv.attacks import ascent, minimum_norm, trust_region

Array = jax.Array
Partial = jax.tree_util.Partial

# Foolbox's numbers: the steps of the binary search, and how many times, in the
# course of the budget, the trust region shrinks to a share of it.
_HALVINGS = 10
_NUM_DECAYS, _DECAY = 20, 0.5
# A step aims this share of the lead beyond the boundary, to stay where it wins.
_OVERSHOOT = 0.1
# What f may be wrong by, of the largest output: a walk along the boundary ends
# so near to it that a judge who asks in batches of another size, or elsewhere,
# would see the label again.
_ROUNDING = 1e-5


class State(NamedTuple):
  """The rows of a walk (see `types.State`, `minimum_norm`)."""

  x: Array
  y: types.PyTree
  keys: Array
  start_key: Array
  step: Array
  point: Array
  way: "_Way"
  distance: Array
  x_adv: Array
  found: Array
  done: Array


class _Way(NamedTuple):
  """What the stages hand on; shares are of the way from x to `start`."""

  stage: Array
  start: Array
  lost: Array  # The largest share that did not win.
  won: Array  # The smallest that did.
  normal: Array  # Of the boundary: a running mean of gradients.


class _Rule(NamedTuple):
  num_steps: int
  learning_rate: types.Scalar
  momentum: types.Scalar
  start: ascent.Start
  bounds: minimum_norm.Bounds


def brendel_bethge(
  norm: norms.Norm,
  *,
  num_steps: int = 1000,
  learning_rate: types.Scalar = 0.1,
  momentum: types.Scalar = 0.8,
  start: ascent.Start = ascent.at_input,
  loss_fn: types.LossFn = losses.margin,
  criterion: types.Criterion = criteria.misclassified,
  bounds: minimum_norm.Bounds = (0.0, 1.0),
) -> types.Attack:
  """Brendel-Bethge: minimum L2 or Linf by a walk along the boundary.

  With f the loss, which is 0 on the boundary, and b the running mean of its
  gradients (`b <- momentum * b + (1 - momentum) * grad f`), a step moves the
  point by the delta that solves

    min ||point + delta - x||   with   b . delta = -c f,   ||delta||_2 <= r

  inside the bounds, c being 0.9 where the point wins and 1.1 where not; where
  the boundary is farther than r, by the longest step towards it. A point wins
  where the criterion holds and f exceeds 1e-5 of the largest output, which is
  taken off f throughout: nearer to the boundary, rounding would say who wins.
  The first r is `learning_rate` times the number of coordinates times the width
  of the bounds; it is halved 20 times in the course of the budget.

  The walk begins where ten halvings of the way from x to a start that wins end.
  The search for one begins at `start`. A point that does not win is moved twice
  as far as the boundary seems to be, again and again; where it has no gradient
  noise is drawn instead. The nearest point that won is the result; a row that
  finds no start keeps its clean input, and a row that wins there is done with
  the first step.

  `num_steps` gradients per row, those of the search for the start (mostly some
  15) included; the model is not asked about what the last one leads to. The
  numbers are those of the authors' program in Foolbox, where r also grows with
  the batch: its `learning_rate` of 1e-3 is 0.1 in a batch of 100. Much smaller
  ones leave walks along hardened models unfinished.

  Args:
    norm: `norms.L2` or `norms.Linf`.
    num_steps: Gradients per row.
    learning_rate: The first trust region.
    momentum: The weight of the past in the mean of the gradients, below 1.
    start: Where the search for a start begins: at x by default, which mostly
      leads to the nearest boundary. `ascent.in_bounds` is uniform noise, as in
      Foolbox: other boundaries, for other keys. It is given the norm's ball as
      wide as the bounds.
    loss_fn: Positive where the row is lost to the attacker: `losses.margin`, or
      `losses.targeted_margin` where y is the target.
    criterion: What counts as a win.
    bounds: The range of inputs.

  Raises:
    TypeError: `num_steps` is not an integer.
    ValueError: the norm is another, `num_steps` is below 1, `learning_rate` is
      not positive, `momentum` not in [0, 1), or the bounds are not a range.

  Reference: Brendel, Rauber, Kuemmerer, Ustyuzhaninov, Bethge, "Accurate,
  reliable and fast robustness evaluation", 2019.
  """
  trust_region.geometry(norm)
  checks.num_steps(num_steps)
  checks.positive("learning_rate", learning_rate)
  checks.non_negative("momentum", momentum)
  checks.below_one("momentum", momentum)
  checks.bounds(bounds)
  rule = _Rule(
    num_steps, learning_rate, momentum, types.hashable(start), bounds
  )
  return types.Attack(
    init=Partial(_init),
    step=Partial(
      _step, norm, rule, types.hashable(loss_fn), types.hashable(criterion)
    ),
    num_steps=num_steps,
    threat=types.threat(None, bounds, criterion),
  )


def _init(keys, x, y) -> State:
  zeros = jnp.zeros(x.shape[0], numerics.wide_type(x))
  way = _Way(
    stage=jnp.full(x.shape[0], -1, jnp.int32),
    start=x,
    lost=zeros,
    won=zeros + 1,
    normal=jnp.zeros(x.shape, zeros.dtype),
  )
  return State(
    **minimum_norm.start(x),
    point=x,
    y=y,
    keys=keys,
    start_key=oracles.start_keys(keys),
    way=way,
  )


def _step(
  norm, rule, loss_fn, criterion, logits_fn, state: State
) -> tuple[State, types.PyTree]:
  keys = oracles.step_keys(state.keys, state.step)
  answer = oracles.loss_and_gradient(
    logits_fn, loss_fn, keys, state.point, state.y
  )
  dtype = state.way.normal.dtype
  loss, grad = (a.astype(dtype) for a in (answer.loss, answer.grad))
  loss = loss - _ROUNDING * jax.vmap(_largest)(answer.outputs).astype(dtype)
  won = oracles.satisfied(criterion, answer.outputs, state.y) & (loss > 0)
  stage = state.way.stage
  seek, narrow, walk = (
    jax.vmap(functools.partial(move, norm, rule))
    for move in (_seek, _narrow, _walk)
  )
  # Drawing for every row would cost as much as a small network.
  point, way = jax.lax.cond(
    jnp.any(stage < 0),
    lambda: seek(state, won, loss, grad),
    lambda: (state.point, state.way),
  )
  halved = narrow(state, won)
  moved = oracles.choose(stage < _HALVINGS, halved, walk(state, loss, grad))
  point, way = oracles.choose(stage < 0, (point, way), moved)
  state = minimum_norm.finish_step(state, norm, won)
  return state._replace(point=point, way=way), answer.outputs


def _seek(norm, rule, state: State, won, loss, grad):
  """The next point of ONE row, and its way; so in the other stages."""
  low, high = rule.bounds
  key, ball = jax.random.fold_in(state.start_key, state.step), norm.ball
  begin = rule.start(key, state.x, ball(high - low), rule.bounds)
  noise = ascent.in_bounds(key, state.x, ball(high - low), rule.bounds)
  delta = projections.l2(state.point, grad, jnp.abs(loss), rule.bounds)
  first = state.step == 0
  elsewhere = jnp.where(first, jnp.any(begin != 0), ~jnp.any(delta != 0))
  moved = jnp.where(
    elsewhere,
    state.x + jnp.where(first, begin, noise),
    state.point + 2 * delta,
  )
  start = state.way._replace(stage=jnp.zeros_like(state.way.stage))
  start = start._replace(start=state.point)
  way = oracles.choose(won, start, state.way)
  halfway = _between(norm, rule, state.x, state.point, 0.5)
  return jnp.where(won, halfway, _inside(rule, moved, state)), way


def _narrow(norm, rule, state: State, won):
  way = state.way
  asked = 0.5 * (way.lost + way.won)
  stage = way.stage + 1
  lost, least = jnp.where(won, way.lost, asked), jnp.where(won, asked, way.won)
  share = jnp.where(stage < _HALVINGS, 0.5 * (lost + least), least)
  way = way._replace(stage=stage, lost=lost, won=least)
  return _between(norm, rule, state.x, way.start, share), way


def _walk(norm, rule, state: State, loss, grad):
  way, (low, high) = state.way, rule.bounds
  moves = way.stage - _HALVINGS
  mean = rule.momentum * way.normal + (1 - rule.momentum) * grad
  normal = jnp.where(moves == 0, grad, mean)
  interval = jnp.maximum(rule.num_steps // _NUM_DECAYS, 1)
  point = state.point.astype(normal.dtype)
  decay = jnp.asarray(_DECAY, point.dtype) ** ((moves + 2) // interval)
  region = rule.learning_rate * decay
  task = trust_region.Task(
    away=state.x.astype(point.dtype) - point,
    normal=normal,
    gap=-loss * jnp.where(loss < 0, 1 + _OVERSHOOT, 1 - _OVERSHOOT),
    radius=region * point.size * (high - low),
    low=low - point,
    high=high - point,
  )
  delta = trust_region.solve(trust_region.geometry(norm), task)
  way = way._replace(stage=way.stage + 1, normal=normal)
  return _inside(rule, point + delta, state), way


def _largest(outputs) -> Array:
  sizes = [jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(outputs)]
  return functools.reduce(jnp.maximum, sizes)


def _between(norm, rule, x, start, share) -> Array:
  low, high = rule.bounds
  between = trust_region.geometry(norm).between
  return between(x, start, share, high - low).astype(x.dtype)


def _inside(rule, point, state: State) -> Array:
  return jnp.clip(point, *rule.bounds).astype(state.x.dtype)
