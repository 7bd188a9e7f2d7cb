"""FAB: the fast adaptive boundary attack, a minimum-norm attack.

Every move linearises the decision boundary at the current point z, projects
both z and the clean input x onto it inside the bounds (`norm.to_hyperplane`:
z + d, x + e), overshoots both and leans towards the second:

  z <- clip((1 - alpha) (z + eta d) + alpha (x + eta e)),
  alpha = min(||d|| / (||d|| + ||e||), alpha_max).

A point that turns out adversarial is kept if it is the nearest so far, and then
drawn back, `z <- x + beta (z - x)`, before the next move. A step is one move:
the gradient at z, and the outputs where the move led: mostly it is drawn back
from there, and a gradient would be wasted.

The authors' program (AutoAttack) sets the defaults; like it, and unlike the
paper, this makes no final search along the segment to x.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxadv import checks, criteria, norms, numerics, oracles, types
from jaxadv.attacks import boundaries, target_order

Array = jax.Array
Bounds = tuple[types.Scalar, types.Scalar]
Partial = jax.tree_util.Partial

# The least length of a projection in the weight of the two (the authors').
_TINY = 1e-8


class State(NamedTuple):
  """The rows of a search in rounds (see `types.State`)."""

  x: Array
  y: Array
  keys: Array
  start_keys: Array
  step: Array  # Moves made, in all rounds.
  point: Array  # Where the next move begins.
  targets: Array  # [B, T]; -1 until the model was asked.
  distance: Array  # Of `x_adv`; infinite while none was found.
  x_adv: Array
  found: Array
  done: Array


class _Rule(NamedTuple):
  norm: norms.Norm
  num_steps: int
  enough: types.Scalar  # A distance that ends the row.
  reach: types.Scalar  # Bounds the random starts.
  alpha_max: types.Scalar
  eta: types.Scalar
  beta: types.Scalar
  bounds: Bounds


class _Rounds(NamedTuple):
  num_targets: int
  num_restarts: int
  start: Partial  # Where the next round of a row begins.


def fab_t(
  norm: norms.Norm,
  *,
  num_steps: int = 100,
  num_targets: int | target_order.Order = 9,
  num_restarts: int = 1,
  eps: types.Scalar | None = None,
  alpha_max: types.Scalar = 0.1,
  eta: types.Scalar = 1.05,
  beta: types.Scalar = 0.9,
  bounds: Bounds = (0.0, 1.0),
) -> types.Attack:
  """FAB-T: the boundary to each of the likeliest wrong classes in turn.

  One gradient and one more forward pass per step, however many classes there
  are. The classes are ordered by the logits of the clean input; any
  misclassification counts, and the nearest over all rounds is the result. A row
  without success keeps its clean input. At most
  `num_steps * num_targets * num_restarts` steps.

  Args:
    norm: `norms.Linf`, `norms.L2` or `norms.L1`.
    num_steps: Moves per round.
    num_targets: Classes, at most all but the label; or an order of its own, as
      `NearestTargets(9, norms.Linf)`; the first move precedes it and takes
      the likeliest.
    num_restarts: Rounds per class. The first starts at the clean input, others
      at random, at half the least of eps, distance so far and size of bounds.
    eps: A row is done when its distance is at most this; by default nothing
      ends it early. 0.3, 1 and 5 are the authors' for MNIST in Linf, L2, L1.
    alpha_max: The greatest pull towards the clean input.
    eta: Overshoot of the projections.
    beta: What remains of a perturbation that is drawn back.
    bounds: The range of inputs.

  Raises:
    TypeError: `norm` is none; a number of steps, targets or restarts is no
      integer.
    ValueError: a number is out of its range; too few classes for `num_targets`.

  Reference: Croce, Hein, "Minimally distorted adversarial examples with a fast
  adaptive boundary attack", 2020; targeted as in "Reliable evaluation of
  adversarial robustness with an ensemble of diverse parameter-free attacks".
  """
  order = target_order.of(num_targets)
  rule = _rule(norm, num_steps, eps, alpha_max, eta, beta, bounds)
  rounds = _rounds(order.count, num_restarts)
  return types.Attack(
    init=Partial(_init, types.Static(_NoTargets(order.count))),
    step=Partial(
      _step, rule, rounds, Partial(_ask_target, types.Static(order))
    ),
    num_steps=num_steps * order.count * num_restarts,
    threat=types.threat(None, bounds, criteria.misclassified),
    forwards=2,
  )


def fab(
  norm: norms.Norm,
  *,
  num_steps: int = 100,
  num_candidates: int = 10,
  num_restarts: int = 1,
  eps: types.Scalar | None = None,
  alpha_max: types.Scalar = 0.1,
  eta: types.Scalar = 1.05,
  beta: types.Scalar = 0.9,
  bounds: Bounds = (0.0, 1.0),
) -> types.Attack:
  """FAB: each move takes the nearest linearised boundary.

  Near in the norm, among the `num_candidates` likeliest classes at the point,
  the label included (the authors take all classes: set it to their number).
  Two forward and `num_candidates` backward passes per step, at most
  `num_steps * num_restarts` steps; AutoAttack's `plus` has 5 restarts.
  Arguments, errors and reference as in `fab_t`.
  """
  candidates = types.hashable(boundaries.Likeliest(num_candidates))
  rule = _rule(norm, num_steps, eps, alpha_max, eta, beta, bounds)
  ask = Partial(_ask_nearest, candidates)
  return types.Attack(
    init=Partial(_init, types.Static(_NoTargets(0))),
    step=Partial(_step, rule, _rounds(1, num_restarts), ask),
    num_steps=num_steps * num_restarts,
    threat=types.threat(None, bounds, criteria.misclassified),
    forwards=2,
    backwards=num_candidates,
  )


def _rule(norm, num_steps, eps, alpha_max, eta, beta, bounds) -> _Rule:
  checks.norm(norm)
  checks.num_steps(num_steps)
  checks.bounds(bounds)
  checks.non_negative("alpha_max", alpha_max)
  checks.positive("eta", eta)
  checks.non_negative("beta", beta)
  if eps is not None:
    checks.non_negative("eps", eps)
  enough, reach = (0.0, jnp.inf) if eps is None else (eps, eps)
  return _Rule(norm, num_steps, enough, reach, alpha_max, eta, beta, bounds)


def _rounds(num_targets, num_restarts) -> _Rounds:
  checks.num_steps(num_restarts, "num_restarts")
  start = _random_start if num_restarts > 1 else _clean_start
  return _Rounds(num_targets, num_restarts, Partial(start))


@dataclasses.dataclass(frozen=True)
class _NoTargets:
  # Shapes depend on the count, so it belongs to the pytree's structure.
  count: int

  def __call__(self, num_rows: int) -> Array:
    return jnp.full((num_rows, self.count), -1, jnp.int32)


def _init(no_targets, keys, x, y) -> State:
  rows = jnp.zeros(x.shape[0], jnp.int32)
  return State(
    x=x,
    y=y,
    keys=keys,
    start_keys=oracles.start_keys(keys),
    step=rows,
    point=x,
    targets=no_targets(x.shape[0]),
    distance=jnp.full(x.shape[0], jnp.inf, x.dtype),
    x_adv=x,
    found=rows > 0,
    done=rows > 0,
  )


def _step(rule, rounds, ask, logits_fn, state) -> tuple[State, types.PyTree]:
  keys = oracles.step_keys(state.keys, 2 * state.step)
  boundary, targets = ask(rule, rounds, logits_fn, keys, state)
  # The clean input may be adversarial, and so may a point drawn back.
  state, _ = _keep_nearest(rule, state, state.point, boundary.outputs)
  move = jax.vmap(_move, in_axes=(None, 0, 0, 0, 0))
  ahead = move(rule, state.x, state.point, boundary.lead, boundary.normal)
  keys = oracles.step_keys(state.keys, 2 * state.step + 1)
  outputs = oracles.outputs(logits_fn, keys, ahead)
  state, won = _keep_nearest(rule, state, ahead, outputs)
  drawn = state.x + (rule.beta * (ahead - state.x)).astype(state.x.dtype)
  state = state._replace(step=state.step + 1, targets=targets)
  enough = state.found & (state.distance <= rule.enough)
  last = _round(rule, state) >= rounds.num_targets * rounds.num_restarts
  state = state._replace(
    point=_begin(rule, rounds, state, oracles.choose(won, drawn, ahead)),
    done=enough | last,
  )
  return state, outputs


def _keep_nearest(rule, state, point, outputs) -> tuple[State, Array]:
  """The state with `point` where that is the nearest, and who won there."""
  won = oracles.satisfied(criteria.misclassified, outputs, state.y)
  distance = jax.vmap(rule.norm)(point - state.x)
  nearer = won & (distance < state.distance)
  state = state._replace(
    distance=jnp.where(nearer, distance, state.distance),
    x_adv=oracles.choose(nearer, point, state.x_adv),
    found=state.found | won,
  )
  return state, won


def _round(rule, state) -> Array:
  return state.step // rule.num_steps


def _begin(rule, rounds, state, point) -> Array:
  """`point`, or where its next round starts if that is due."""
  due = state.step % rule.num_steps == 0
  return jax.lax.cond(
    jnp.any(due),
    lambda: oracles.choose(due, rounds.start(rule, rounds, state), point),
    lambda: point,
  )


def _ask_target(order, rule, rounds, logits_fn, keys, state):
  index = _round(rule, state) // rounds.num_restarts
  index = jnp.minimum(index, state.targets.shape[1] - 1)
  target = jnp.take_along_axis(state.targets, index[:, None], axis=1)[:, 0]
  boundary = boundaries.targeted(logits_fn, keys, state.point, state.y, target)
  unknown = target < 0
  outputs = boundary.outputs
  own = oracles.own_keys(state.keys, state.step)
  ranked = order(unknown, logits_fn, own, state.x, outputs, state.y)
  return boundary, oracles.choose(unknown, ranked, state.targets)


def _ask_nearest(candidates, rule, rounds, logits_fn, keys, state):
  del rounds
  boundary = boundaries.nearest(
    rule.norm, candidates, logits_fn, keys, state.point, state.y
  )
  return boundary, state.targets


def _move(rule, x: Array, point: Array, lead: Array, normal: Array) -> Array:
  ends = jnp.stack([point, x])
  gaps = jnp.stack([-lead, jnp.sum(normal * (point - x)) - lead])
  project = jax.vmap(rule.norm.to_hyperplane, in_axes=(0, None, 0, None))
  deltas = project(ends, normal, gaps, rule.bounds)
  sizes = jax.vmap(rule.norm)(deltas)
  near, far = jnp.maximum(sizes, numerics.guard(_TINY, sizes.dtype))
  alpha = jnp.minimum(near / (near + far), rule.alpha_max)
  shot = ends + rule.eta * deltas
  leant = (1 - alpha) * shot[0] + alpha * shot[1]
  return jnp.clip(leant, *rule.bounds).astype(x.dtype)


def _clean_start(rule, rounds, state: State) -> Array:
  del rule, rounds
  return state.x


def _random_start(rule, rounds, state: State) -> Array:
  round_ = _round(rule, state)
  keys = oracles.step_keys(state.start_keys, round_)
  shift = jax.vmap(_random_shift, in_axes=(None, 0, 0, 0))
  random = shift(rule, keys, state.x, state.distance)
  first = round_ % rounds.num_restarts == 0
  return oracles.choose(first, state.x, random)


def _random_shift(rule, key, x: Array, distance: Array) -> Array:
  low, high = rule.bounds
  direction = rule.norm.ball(1.0).sample(key, x)
  length = rule.norm(direction)
  size = rule.norm(jnp.full_like(x, high - low))
  radius = jnp.minimum(jnp.minimum(distance, rule.reach), size) / 2
  shift = direction * (radius / jnp.where(length > 0, length, 1.0))
  return jnp.clip(x + shift, low, high).astype(x.dtype)
