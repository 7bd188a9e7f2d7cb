"""Carlini and Wagner's L0 attack: an L2 attack on fewer and fewer pixels.

How it differs from the authors' program: rows are independent of each other;
pixels that moved by less than 1e-4 of the range are put back before the model
is asked, so the count of changed pixels is exact; only pixels that moved are
frozen, since the others cost nothing and may be missed later (on 12 images and
a hardened network, 20 pixels changed instead of 28); and what a pixel
contributes is measured by the gradient of the loss, as the paper says, in
shares of all pixels' contributions, so the scale of the logits does not matter.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxadv import checks, criteria, losses, numerics, oracles, types
from jaxadv.attacks import minimum_norm, penalised

Array = jax.Array
Partial = jax.tree_util.Partial

# The authors' program: c doubles where a search fails; a search has won where
# the loss lacks less than this; what has moved less counts as unchanged; and
# of k changed pixels this share of sqrt(k) may be frozen at once.
_GROWTH, _SOLVED, _UNCHANGED, _AT_ONCE = 2.0, 1e-4, 1e-4, 0.3
# A pixel that contributes more than this share is frozen alone.
_MINOR = 0.01


class State(NamedTuple):
  """The rows of a search (see `types.State`)."""

  x: Array
  y: types.PyTree
  keys: Array
  step: Array
  free: Array  # The pixels that may change [B, ..., 1]; vectors: [B, D].
  c: Array
  taken: Array  # The steps with this c and these pixels so far.
  hidden: Array  # The point in the space of arctanh.
  optimizer: optax.OptState
  distance: Array  # Pixels changed in `x_adv`; infinite before a success.
  x_adv: Array
  found: Array
  done: Array


class _Rule(NamedTuple):
  num_steps: int
  learning_rate: types.Scalar
  confidence: types.Scalar
  c_range: tuple[types.Scalar, types.Scalar]
  bounds: penalised.Bounds


def carlini_wagner_l0(
  *,
  num_searches: int = 250,
  num_steps: int = 1000,
  learning_rate: types.Scalar = 1e-2,
  confidence: types.Scalar = 0.01,
  c_range: tuple[types.Scalar, types.Scalar] = (1e-3, 2e6),
  loss_fn: types.LossFn = losses.margin,
  criterion: types.Criterion = criteria.misclassified,
  bounds: penalised.Bounds = (0.0, 1.0),
) -> types.Attack:
  """Carlini and Wagner's L0 attack: changes few pixels, as far as they like.

  Minimises `||x' - x||^2 + c * max(0, confidence - loss)` with Adam over w,
  where `x' = middle + half_width * tanh(w)` in the free pixels, at first all,
  and x in the others. A search ends with the first point that wins and whose
  loss lacks less than 1e-4 of the confidence. Of the k pixels that moved those
  that contribute least, by `|gradient * change|` summed over the channels, are
  then frozen: `ceil(0.3 sqrt(k))` of them, but only one of more than 1 % of the
  whole. The next search starts from that point with a new Adam. A search that
  does not end in `num_steps` goes on with twice the c. A row is done when c
  exceeds its range or no pixel is free.

  The result is the point of fewest changed pixels that won, among all that the
  model was asked about. A row that is won at x is done with distance 0; a row
  without success keeps its clean input. A pixel of an image [H, W, C] is all
  its channels; in inputs of another rank each coordinate is one.

  The defaults are those of the authors' program, which has no `num_searches`:
  it goes on until c exceeds its range.

  Args:
    num_searches: Together with `num_steps` the budget: a row takes at most
      `num_searches * num_steps` steps. Searches that win early leave their
      steps to the others.
    num_steps: Steps until c doubles.
    learning_rate: Adam's, in the space of arctanh.
    confidence: How positive the loss is pushed.
    c_range: The first c and the largest one tried.
    loss_fn: A difference of logits, positive where the attacker has won:
      `losses.margin`, or `losses.targeted_margin` where y is the target.
    criterion: When a point counts, of `(logits, y)`.
    bounds: The range of inputs.

  Raises:
    TypeError: a number of searches or steps is not an integer.
    ValueError: a number is out of its range, or the bounds are not a range.

  Reference: Carlini and Wagner, "Towards evaluating the robustness of neural
  networks", 2017.
  """
  checks.num_steps(num_searches, "num_searches")
  checks.num_steps(num_steps)
  checks.positive("learning_rate", learning_rate)
  checks.non_negative("confidence", confidence)
  penalised.check_range(c_range)
  checks.bounds(bounds)
  rule = _Rule(num_steps, learning_rate, confidence, c_range, bounds)
  return types.Attack(
    init=Partial(_init, rule),
    step=Partial(
      _step, rule, types.hashable(loss_fn), types.hashable(criterion)
    ),
    num_steps=num_searches * num_steps,
    threat=types.threat(None, bounds, criterion),
  )


def _init(rule, keys, x, y) -> State:
  num_rows = x.shape[0]
  hidden = penalised.to_hidden(rule.bounds, x)
  return State(
    **minimum_norm.start(x),
    y=y,
    keys=keys,
    free=jax.vmap(_pixels)(jnp.ones(x.shape, bool)),
    c=jnp.full(num_rows, rule.c_range[0], hidden.dtype),
    taken=jnp.zeros(num_rows, jnp.int32),
    hidden=hidden,
    optimizer=penalised.start_optimizer(hidden),
  )


def _step(
  rule, loss_fn, criterion, logits_fn, state
) -> tuple[State, types.PyTree]:
  x = state.x
  inside, slope = penalised.from_hidden(rule.bounds, state.hidden)
  least = _UNCHANGED * (rule.bounds[1] - rule.bounds[0])
  far = jnp.abs(penalised.perturbation(x, inside)) > least
  # So the first point is x, exactly: a row wrong there has distance 0.
  moved = state.free & jax.vmap(_pixels)(far)
  point = jnp.where(moved, inside.astype(x.dtype), x)
  keys = oracles.step_keys(state.keys, state.step)
  answer = oracles.loss_and_gradient(logits_fn, loss_fn, keys, point, state.y)
  won = oracles.satisfied(criterion, answer.outputs, state.y)
  distance = jax.vmap(jnp.sum)(moved).astype(state.distance.dtype)
  missing = penalised.shortfall(rule.confidence, answer)
  delta = penalised.perturbation(x, point)
  pull = penalised.pull(jnp.where(missing > 0, state.c, 0.0), answer)
  grad = jnp.where(state.free, slope * (2 * delta - pull), 0.0)
  state = minimum_norm.keep_nearest(state, point, won, distance)
  solved = won & (missing < _SOLVED)
  state = _advance(rule, state, solved, moved, answer.grad * delta, grad)
  over = (state.c > rule.c_range[1]) | ~jax.vmap(jnp.any)(state.free)
  return state._replace(done=(state.distance == 0) | over), answer.outputs


def _advance(rule, state: State, solved, moved, changes, grad) -> State:
  """Freezes pixels where the search has won; else it goes on, with more c."""
  taken = state.taken + 1
  failed = ~solved & (taken >= rule.num_steps)
  # Sorting takes long, and few steps win.
  free = jax.lax.cond(
    jnp.any(solved),
    lambda: oracles.choose(
      solved, jax.vmap(_still_free)(state.free, moved, changes), state.free
    ),
    lambda: state.free,
  )
  fresh = state.hidden, penalised.start_optimizer(state.hidden)
  descended = penalised.descend(
    rule.learning_rate, grad, state.hidden, state.optimizer
  )
  hidden, optimizer = oracles.choose(solved, fresh, descended)
  return state._replace(
    free=free,
    c=jnp.where(failed, _GROWTH * state.c, state.c),
    taken=jnp.where(solved | failed, 0, taken),
    hidden=hidden,
    optimizer=optimizer,
  )


def _pixels(coordinates: Array) -> Array:
  """Whether any channel of each pixel is marked, of ONE example."""
  if coordinates.ndim == 3:
    return jnp.any(coordinates, axis=-1, keepdims=True)
  return coordinates


def _still_free(free: Array, moved: Array, changes: Array) -> Array:
  """The free pixels without those of least contribution, of ONE example."""
  parts = jnp.abs(changes).astype(numerics.wide_type(changes))
  if parts.ndim == 3:
    parts = jnp.sum(parts, axis=-1, keepdims=True)
  parts = jnp.where(moved, parts, jnp.inf)
  rank = jnp.argsort(jnp.argsort(jnp.ravel(parts))).reshape(parts.shape)
  minor = parts <= _MINOR * jnp.sum(jnp.where(moved, parts, 0.0))
  at_once = jnp.ceil(_AT_ONCE * jnp.sqrt(jnp.sum(moved)))
  least = (rank == 0) | (minor & (rank < at_once))
  return free & ~(moved & least)
