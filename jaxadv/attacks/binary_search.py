"""The search for the constant c that attacks of a penalised objective share.

Such an attack minimises `distance + c * loss`, anew for every c: each search
that wins lowers the upper end of an interval, each that fails raises the lower
one. Here the two nested loops are counters, advanced by one after each question
to the model; all functions are elementwise, so they serve one example or a
batch.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxadv import checks, types

Array = jax.Array

# An upper end as large as this says that no search has won yet.
_NEVER_WON = 1e10
# Searches from which on the last one repeats the least c that won.
_REPEATS_FROM = 10
# A tenth of a search must lower the objective to less than this share of it.
_STUCK = 0.9999


class Plan(NamedTuple):
  """How c is searched for; the defaults are those of Carlini and Wagner.

  Attributes:
    num_searches: How many values of c are tried. With 10 or more the last one
      is the least that won so far (1e10 if none did).
    num_steps: The most steps of one search.
    initial_c: The first c; it grows tenfold until a search wins.
    abort_early: Whether a search ends where a tenth of its steps has not
      lowered the row's own objective by 0.01 %. Cheaper, and somewhat worse.
  """

  num_searches: int = 9
  num_steps: int = 10_000
  initial_c: types.Scalar = 1e-3
  abort_early: bool | Array = True


class Search(NamedTuple):
  """Where a row is in its search.

  Attributes:
    c: The constant of this search.
    lower: The largest c that failed, else 0.
    upper: The smallest c that won, else 1e10.
    number: How many searches are over.
    step: The steps of this search so far; 0 says that it is new.
    won: Whether this search has won.
    objective: What the objective was when progress was last looked at.
  """

  c: Array
  lower: Array
  upper: Array
  number: Array
  step: Array
  won: Array
  objective: Array


def check(plan: Plan) -> None:
  """Refuses other things, no searches or steps, or a senseless first c."""
  if not isinstance(plan, Plan):
    raise TypeError(
      f"plan must be a search for c such as "
      f"attacks.binary_search.Plan(num_searches=9, num_steps=1000), got "
      f"plan={plan!r}"
    )
  checks.num_steps(plan.num_searches, "num_searches")
  checks.num_steps(plan.num_steps)
  checks.positive("initial_c", plan.initial_c)


def start(plan: Plan, num_rows: int, dtype: jnp.dtype = jnp.float32) -> Search:
  """Before the first step of `num_rows` rows; `dtype` is that of objectives."""
  zeros = jnp.zeros(num_rows, dtype)
  counts = jnp.zeros(num_rows, jnp.int32)
  return Search(
    c=jnp.full(num_rows, plan.initial_c, zeros.dtype),
    lower=zeros,
    upper=zeros + _NEVER_WON,
    number=counts,
    step=counts,
    won=jnp.zeros(num_rows, bool),
    objective=zeros + jnp.inf,
  )


def advance(
  plan: Plan,
  search: Search,
  won: Array,
  objective: Array,
  converged: Array | bool = False,
) -> Search:
  """One step later.

  Args:
    plan: The plan.
    search: Before the step.
    won: Whether the row's point won.
    objective: Its objective there.
    converged: Whether this search has nothing more to gain.

  Returns:
    Either this search goes on, or the next one begins with its step 0.
  """
  tenth = jnp.maximum(plan.num_steps // 10, 1)
  looked = search.step % tenth == 0
  stuck = looked & (objective > _STUCK * search.objective)
  step = search.step + 1
  going_on = search._replace(
    step=step,
    won=search.won | won,
    objective=jnp.where(looked, objective, search.objective),
  )
  over = (stuck & plan.abort_early) | converged | (step >= plan.num_steps)
  following = _next(plan, going_on)
  return jax.tree.map(
    lambda new, old: jnp.where(over, new, old), following, going_on
  )


def finished(plan: Plan, search: Search) -> Array:
  """Whether all searches are over."""
  return search.number >= plan.num_searches


def _next(plan: Plan, search: Search) -> Search:
  c, won = search.c, search.won
  upper = jnp.where(won, jnp.minimum(search.upper, c), search.upper)
  lower = jnp.where(won, search.lower, jnp.maximum(search.lower, c))
  larger = jnp.minimum(10 * c, _NEVER_WON)
  halved = jnp.where(upper < _NEVER_WON, (lower + upper) / 2, larger)
  number = search.number + 1
  repeats = (plan.num_searches >= _REPEATS_FROM) & (
    number == plan.num_searches - 1
  )
  return Search(
    c=jnp.where(repeats, upper, halved),
    lower=lower,
    upper=upper,
    number=number,
    step=jnp.zeros_like(search.step),
    won=jnp.zeros_like(won),
    objective=jnp.full_like(search.objective, jnp.inf),
  )
