"""Attacks with a fixed radius, inside a search for the least radius that wins.

Each row has a radius of its own. From the first it doubles until an attempt
wins, then halves the interval between the largest that failed and the distance
of the nearest point that won. Attempts follow each other until the budget of
steps is spent: one that wins ends early and leaves more to the next.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxadv import oracles, types
from jaxadv.attacks import minimum_norm

Array = jax.Array
Partial = jax.tree_util.Partial
# The attack of a radius.
AttackFn = Callable[[Array], types.Attack]


class State(NamedTuple):
  """The rows of a search (see `types.State`)."""

  x: Array
  y: types.PyTree
  keys: Array
  attempt: Array
  age: Array  # Steps of this attempt.
  low: Array  # The largest radius that failed.
  high: Array  # The distance of the nearest point that won.
  eps: Array  # The radius of this attempt.
  inner: Any
  step: Array
  distance: Array
  x_adv: Array
  found: Array
  done: Array


class _Search(NamedTuple):
  attack_fn: types.Static
  norm: types.Static
  first: types.Scalar
  largest: types.Scalar


def least_radius(
  attack_fn: AttackFn,
  norm: Callable[[Array], Array],
  *,
  first: types.Scalar,
  largest: types.Scalar,
  num_steps: int,
) -> types.Attack:
  """The search as an attack of its own, without a radius.

  Args:
    attack_fn: Makes the attack of a radius; a function of a module. The attack
      is done with the first point that wins.
    norm: The size of ONE perturbation, in the norm of the radius.
    first: The first radius.
    largest: The largest one, that of the whole box.
    num_steps: Steps of all attempts together.
  """
  search = _Search(types.Static(attack_fn), types.Static(norm), first, largest)
  like = attack_fn(jnp.asarray(first, jnp.float32))
  return types.Attack(
    init=Partial(_init, search),
    step=Partial(_step, search),
    num_steps=num_steps,
    threat=like.threat._replace(ball=None),
    forwards=like.forwards,
    backwards=like.backwards,
  )


def _begin(search: _Search, keys, attempt, eps, x, y) -> Any:
  """The states of new attempts, each of the batch of ONE row."""

  def begin(key, attempt, eps, x, y):
    key = jax.random.fold_in(key, attempt)
    one = jax.tree.map(lambda leaf: leaf[None], (key, x, y))
    return search.attack_fn(eps).init(*one)

  return jax.vmap(begin)(keys, attempt, eps, x, y)


def _init(search, keys, x, y) -> State:
  zero = jnp.zeros(len(x), jnp.int32)
  eps = jnp.full(len(x), search.first, jnp.float32)
  return State(
    **minimum_norm.start(x),
    y=y,
    keys=keys,
    attempt=zero,
    age=zero,
    low=jnp.zeros_like(eps),
    high=jnp.full_like(eps, jnp.inf),
    eps=eps,
    inner=_begin(search, keys, zero, eps, x, y),
  )


def _step(search, logits_fn, state: State) -> tuple[State, types.PyTree]:
  def advance(eps, inner):
    attack = search.attack_fn(eps)
    inner, outputs = attack.step(logits_fn, inner)
    return inner, outputs, jnp.asarray(attack.num_steps)

  inner, outputs, num_steps = jax.vmap(advance)(state.eps, state.inner)
  won, point, spent = inner.found[:, 0], inner.x_adv[:, 0], inner.done[:, 0]
  age = state.age + 1
  ended = won | spent | (age >= num_steps)
  size = jax.vmap(search.norm)(point - state.x)
  state = minimum_norm.keep_nearest(state, point, won, size)
  low = jnp.where(ended & ~won, jnp.maximum(state.low, state.eps), state.low)
  high = jnp.where(won, jnp.minimum(state.high, size), state.high)
  # Luck may win below a radius that failed.
  low = jnp.minimum(low, high)
  doubled = jnp.minimum(2 * state.eps, search.largest)
  halved = jnp.where(jnp.isfinite(high), (low + high) / 2, doubled)
  eps = jnp.where(ended, halved, state.eps)
  attempt = state.attempt + ended
  fresh = _begin(search, state.keys, attempt, eps, state.x, state.y)
  state = state._replace(
    attempt=attempt,
    age=jnp.where(ended, 0, age),
    low=low,
    high=high,
    eps=eps,
    inner=oracles.choose(ended, fresh, inner),
    done=state.distance <= 0,
  )
  return state, jax.tree.map(lambda leaf: leaf[:, 0], outputs)
