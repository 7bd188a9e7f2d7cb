"""Carlini and Wagner's Linf attack: Adam against all that leaves a box.

How it differs from the authors' program: rows are independent of each other,
the nearest point of all that won is kept, whatever search it was met in, and a
search begins with the answer that ended the one before, so no question is asked
twice.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxadv import checks, criteria, losses, norms, oracles, types
from jaxadv.attacks import minimum_norm, penalised

Array = jax.Array
Partial = jax.tree_util.Partial

# The authors' program: c doubles where a search fails; a search has won where
# the objective is below this share of c; tau ends at this share of the range.
_GROWTH, _SOLVED, _LAST_TAU = 2.0, 1e-4, 1 / 256


class State(NamedTuple):
  """The rows of a search (see `types.State`)."""

  x: Array
  y: types.PyTree
  keys: Array
  step: Array
  tau: Array  # What each coordinate may move for free.
  c: Array
  taken: Array  # The steps of this search so far.
  hidden: Array  # The point in the space of arctanh.
  optimizer: optax.OptState
  distance: Array  # That of `x_adv`; infinite before the first success.
  x_adv: Array
  found: Array
  done: Array


class _Rule(NamedTuple):
  num_steps: int
  learning_rate: types.Scalar
  decrease: types.Scalar
  c_range: tuple[types.Scalar, types.Scalar]
  bounds: penalised.Bounds


def carlini_wagner_linf(
  *,
  num_searches: int = 75,
  num_steps: int = 1000,
  learning_rate: types.Scalar = 5e-3,
  decrease: types.Scalar = 0.9,
  c_range: tuple[types.Scalar, types.Scalar] = (1e-5, 20.0),
  loss_fn: types.LossFn = losses.margin,
  criterion: types.Criterion = criteria.misclassified,
  bounds: penalised.Bounds = (0.0, 1.0),
) -> types.Attack:
  """Carlini and Wagner's Linf attack, a minimum-norm attack.

  Minimises `sum(max(|x' - x| - tau, 0)) + c * max(0, -loss)` with Adam over w,
  where `x' = middle + half_width * tanh(w)`. A search ends where the point wins
  and the objective is below 1e-4 c; then tau, at first the width of the bounds,
  becomes `decrease` times the smaller of itself and the distance reached, and
  the next search starts from that point with a new Adam. A search that does not
  end in `num_steps` goes on with twice the c. A row is done when tau is below
  1/256 of the width, when c exceeds its range, or when it is won at x.

  The result is the point of least Linf distance to x that won, among all that
  the model was asked about; a row without success keeps its clean input. The
  distance is found to about `1 - decrease`.

  The defaults are those of the authors' program; its searches are at most 74.

  Args:
    num_searches: Together with `num_steps` the budget: a row takes at most
      `num_searches * num_steps` steps. Searches that win early leave their
      steps to the others.
    num_steps: Steps until c doubles.
    learning_rate: Adam's, in the space of arctanh.
    decrease: How tau shrinks after each win, in (0, 1): nearer 1 is more exact
      and slower.
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
  checks.positive("decrease", decrease)
  checks.below_one("decrease", decrease)
  penalised.check_range(c_range)
  checks.bounds(bounds)
  rule = _Rule(num_steps, learning_rate, decrease, c_range, bounds)
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
    tau=jnp.full(num_rows, rule.bounds[1] - rule.bounds[0], hidden.dtype),
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
  # The first point is x, exactly: a row wrong there has distance 0.
  point = oracles.choose(state.step == 0, x, inside.astype(x.dtype))
  keys = oracles.step_keys(state.keys, state.step)
  answer = oracles.loss_and_gradient(logits_fn, loss_fn, keys, point, state.y)
  won = oracles.satisfied(criterion, answer.outputs, state.y)
  delta = penalised.perturbation(x, point)
  distance = jax.vmap(norms.Linf)(delta)
  missing = penalised.shortfall(0.0, answer)
  excess = jax.vmap(_excess)(delta, state.tau)
  solved = won & (excess + state.c * missing < _SOLVED * state.c)
  state = minimum_norm.keep_nearest(state, point, won, distance)
  state = _advance(rule, state, solved, distance)
  away = jax.vmap(_excess_gradient)(delta, state.tau)
  grad = slope * (
    away - penalised.pull(jnp.where(missing > 0, state.c, 0.0), answer)
  )
  hidden, optimizer = penalised.descend(
    rule.learning_rate, grad, state.hidden, state.optimizer
  )
  width = rule.bounds[1] - rule.bounds[0]
  over = (state.tau < _LAST_TAU * width) | (state.c > rule.c_range[1])
  state = state._replace(
    hidden=hidden,
    optimizer=optimizer,
    done=(state.distance == 0) | over,
  )
  return state, answer.outputs


def _advance(rule, state: State, solved: Array, distance: Array) -> State:
  """Begins the next search where this one has won or is out of steps."""
  taken = state.taken + 1
  failed = ~solved & (taken >= rule.num_steps)
  tau = rule.decrease * jnp.minimum(state.tau, distance)
  fresh = penalised.start_optimizer(state.hidden)
  return state._replace(
    tau=jnp.where(solved, tau, state.tau),
    c=jnp.where(failed, _GROWTH * state.c, state.c),
    taken=jnp.where(solved | failed, 0, taken),
    optimizer=oracles.choose(solved, fresh, state.optimizer),
  )


def _excess(delta: Array, tau: Array) -> Array:
  return jnp.sum(jnp.maximum(jnp.abs(delta) - tau, 0.0))


def _excess_gradient(delta: Array, tau: Array) -> Array:
  return jnp.where(jnp.abs(delta) > tau, jnp.sign(delta), 0.0)
