"""Carlini and Wagner's L2 attack: Adam on distance plus c times the margin.

The search runs in the space of arctanh, where every point is inside the bounds.
How it differs from other programs: every example has its own binary search,
Adam and early abort; success is checked, and the distance to the clean input
itself measured, at the very point whose logits were computed; a search that
fails returns the clean input.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxadv import checks, criteria, losses, norms, numerics, oracles, types
from jaxadv.attacks import binary_search, minimum_norm, penalised

Array = jax.Array
Partial = jax.tree_util.Partial

_PLAN = binary_search.Plan()


class State(NamedTuple):
  """The rows of a search (see `types.State`)."""

  x: Array
  y: types.PyTree
  keys: Array
  step: Array
  search: binary_search.Search
  hidden: Array  # The point in the space of arctanh.
  optimizer: optax.OptState
  distance: Array  # That of `x_adv`; infinite before the first success.
  x_adv: Array
  found: Array
  done: Array


def carlini_wagner(
  *,
  plan: binary_search.Plan = _PLAN,
  learning_rate: types.Scalar = 1e-2,
  confidence: types.Scalar = 0.0,
  loss_fn: types.LossFn = losses.margin,
  criterion: types.Criterion = criteria.misclassified,
  bounds: penalised.Bounds = (0.0, 1.0),
) -> types.Attack:
  """Carlini and Wagner's L2 attack, a minimum-norm attack: slow and thorough.

  Minimises `||x' - x||^2 + c * max(0, confidence - loss)` with Adam over w,
  where `x' = middle + half_width * tanh(w)`, for each c of a binary search of
  the row's own. The result is the point of least L2 distance to x that won,
  among all that the model was asked about. A row that is won at x is done with
  distance 0; a row without success keeps its clean input.

  The defaults are the authors' program's: 9 searches of at most 10,000 steps, c
  from 1e-3, learning rate 0.01, confidence 0, early abort. Distances are in the
  units of the input, squared in the objective: c scales with their square.

  Args:
    plan: The search for c, as `binary_search.Plan(num_searches=9,
      num_steps=1000, abort_early=False)`.
    learning_rate: Adam's, in the space of arctanh.
    confidence: By how much the loss must be positive; 0 leaves success to the
      criterion alone.
    loss_fn: A difference of logits, positive where the attacker has won:
      `losses.margin`, or `losses.targeted_margin` where y is the target.
    criterion: When a point counts, of `(logits, y)`; `criteria.classified_as`
      where y is the target.
    bounds: The range of inputs.

  Raises:
    TypeError: `plan` is none, or a number in it is not an integer.
    ValueError: a number is out of its range, or the bounds are not a range.

  Reference: Carlini and Wagner, "Towards evaluating the robustness of neural
  networks", 2017.
  """
  binary_search.check(plan)
  checks.positive("learning_rate", learning_rate)
  checks.non_negative("confidence", confidence)
  checks.bounds(bounds)
  return types.Attack(
    init=Partial(_init, plan, bounds),
    step=Partial(
      _step,
      plan,
      learning_rate,
      confidence,
      bounds,
      types.hashable(loss_fn),
      types.hashable(criterion),
    ),
    num_steps=plan.num_searches * plan.num_steps,
    threat=types.threat(None, bounds, criterion),
  )


def _init(plan, bounds, keys, x, y) -> State:
  hidden, optimizer = _start(bounds, x)
  return State(
    **minimum_norm.start(x),
    y=y,
    keys=keys,
    search=binary_search.start(plan, x.shape[0], numerics.wide_type(x)),
    hidden=hidden,
    optimizer=optimizer,
  )


def _step(
  plan,
  learning_rate,
  confidence,
  bounds,
  loss_fn,
  criterion,
  logits_fn,
  state: State,
) -> tuple[State, types.PyTree]:
  x = state.x
  inside, slope = penalised.from_hidden(bounds, state.hidden)
  # Every search begins at x, exactly: a row wrong there has distance 0.
  fresh = state.search.step == 0
  point = oracles.choose(fresh, x, inside.astype(x.dtype))
  keys = oracles.step_keys(state.keys, state.step)
  answer = oracles.loss_and_gradient(logits_fn, loss_fn, keys, point, state.y)
  won = penalised.wins(criterion, confidence, answer, state.y)
  delta = penalised.perturbation(x, point)
  distance = jax.vmap(norms.L2)(delta)
  missing = penalised.shortfall(confidence, answer)
  objective = jnp.square(distance) + state.search.c * missing
  pull = penalised.pull(jnp.where(missing > 0, state.search.c, 0.0), answer)
  search = binary_search.advance(plan, state.search, won, objective)
  descended = penalised.descend(
    learning_rate, slope * (2 * delta - pull), state.hidden, state.optimizer
  )
  hidden, optimizer = oracles.choose(
    search.step == 0, _start(bounds, x), descended
  )
  state = minimum_norm.keep_nearest(state, point, won, distance)
  state = state._replace(
    search=search,
    hidden=hidden,
    optimizer=optimizer,
    done=(state.distance == 0) | binary_search.finished(plan, search),
  )
  return state, answer.outputs


def _start(bounds, x: Array) -> tuple[Array, optax.OptState]:
  hidden = penalised.to_hidden(bounds, x)
  return hidden, penalised.start_optimizer(hidden)
