"""Square Attack: random search by windows, asking for the outputs alone."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxadv import checks, criteria, losses, numerics, oracles, types
from jaxadv.attacks import square_moves

Array = jax.Array
Partial = jax.tree_util.Partial

# Proposals, of 10,000, after which the share of a window halves.
_BREAKS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_SCALE = 10_000


class State(NamedTuple):
  """The rows of a Square Attack (see `types.State`)."""

  x: Array
  y: types.PyTree
  keys: Array
  step: Array  # Queries made.
  delta: Array  # The best perturbation; `x_adv - x` before rounding.
  best: Array  # Its loss; -inf before the first query.
  x_adv: Array
  found: Array
  done: Array


def square(
  ball: types.Ball,
  *,
  num_queries: int = 5000,
  p_init: types.Scalar = 0.8,
  horizon: types.Scalar = _SCALE,
  loss_fn: types.LossFn = losses.margin,
  criterion: types.Criterion = criteria.misclassified,
  bounds: tuple[types.Scalar, types.Scalar] = (0.0, 1.0),
) -> types.Attack:
  """Square Attack: recolours random square windows, keeps what helps.

  The first query asks about a start that fills the ball: stripes (Linf) or a
  grid of bumps (L2, L1). Each further one changes a window of `share * H * W`
  pixels of the best point so far and keeps the change if the loss rises or the
  criterion holds. In Linf a window takes a sign per channel; in L2 and L1 it
  takes a bump and the norm of another window, which is cleared. The share is
  `window_share`: `p_init`, halved nine times in the course of `horizon`.

  Inputs are images [H, W, C] of any size and number of channels. A row is done
  when the criterion holds, so `engine.craft`'s record of one run holds success
  against queries: `record.success & (record.steps <= n)`.

  Where the code of AutoAttack and of the authors differ or fail, this one:
    - gives each example windows, signs and a schedule of its own (AutoAttack
      shares them within a batch);
    - in Linf never asks about a window that changes nothing, as the authors'
      (they draw signs until something changes; here the opposite signs are
      taken, the same for one channel); AutoAttack spends the query;
    - lets windows reach the last row and column (theirs stop one short), the
      outermost offsets being half as likely as others;
    - caps a window at the shorter side, as AutoAttack does, and starts in
      images of any shape (theirs fail below 5 pixels and for many oblong ones);
    - counts the first query: 5,000 are 5,000, not 5,001;
    - takes an equal loss for no gain, and a tie of logits for whatever the
      criterion (argmax) says, not for a success;
    - scales the L1 start by the width of the bounds (theirs are [0, 1]);
    - in L1 and one channel clears a window where the perturbation is (theirs
      clears any, and most hold nothing): measured after 4,000 queries of grey
      images as strong or stronger. With several channels it was not, so there
      any window is cleared.

  Against a randomised model a lucky draw of the loss is never forgotten: ask
  for means with `attacks.eot(attack, 20)` and spend the whole budget with
  `criterion=criteria.never`; the judge draws afresh.

  Args:
    ball: `balls.Linf`, `L2`, `L1`, or one of them in `balls.Masked`; windows
      outside of a mask are wasted queries.
    num_queries: Forward passes per row; 5,000 as in AutoAttack (paper: 10,000).
    p_init: The share of pixels in the first windows; 0.8 as in AutoAttack (the
      paper: 0.05 in Linf, 0.1 in L2 for ImageNet).
    horizon: The queries over which the schedule is spread. 10,000 as in
      AutoAttack whatever the budget; the paper's is `num_queries`.
    loss_fn: What to maximise; the margin, as in the paper.
    criterion: When to stop.
    bounds: The range of inputs.

  Raises:
    TypeError: there are no moves for this ball, or `num_queries` is not an
      integer.
    ValueError: `num_queries`, `p_init`, `horizon` or the bounds are out of
      range; the inputs are not images.

  Reference: Andriushchenko, Croce, Flammarion, Hein, "Square Attack: a
  query-efficient black-box adversarial attack via random search", 2020; for L1
  Croce, Hein, "Mind the box: l1-APGD for sparse adversarial attacks on image
  classifiers", 2021.
  """
  checks.num_steps(num_queries, "num_queries")
  checks.positive("p_init", p_init)
  checks.non_negative("1 - p_init", 1 - p_init)
  checks.positive("horizon", horizon)
  checks.bounds(bounds)
  start, propose = map(types.hashable, square_moves.moves(ball))
  return types.Attack(
    init=Partial(_init, ball, bounds, start),
    step=Partial(
      _step,
      ball,
      bounds,
      propose,
      (p_init, horizon),
      types.hashable(loss_fn),
      types.hashable(criterion),
    ),
    num_steps=num_queries,
    threat=types.threat(ball, bounds, criterion),
    forwards=1,
    backwards=0,
  )


def window_share(
  count: Array, p_init: types.Scalar, horizon: types.Scalar
) -> types.Scalar:
  """The share of pixels in a window after `count` proposals.

  `p_init`, halved after 10, 50, 200, 500, 1000, 2000, 4000, 6000 and 8000 of
  10,000 proposals (of `horizon`, in proportion), as in the paper.
  """
  stretch = horizon / _SCALE
  halvings = sum((count > after * stretch).astype(int) for after in _BREAKS)
  return p_init * 0.5**halvings


def _init(ball, bounds, start, keys, x, y) -> State:
  checks.images(x)
  low, high = bounds[0] - x, bounds[1] - x
  delta = jax.vmap(lambda *args: start(ball, *args))(
    oracles.start_keys(keys), low, high
  )
  delta = delta.astype(x.dtype)
  rows = jnp.zeros(len(x), bool)
  return State(
    x=x,
    y=y,
    keys=keys,
    step=jnp.zeros(len(x), jnp.int32),
    delta=delta,
    best=jnp.full(len(x), -jnp.inf, numerics.wide_type(x)),
    x_adv=jnp.clip(x + delta, *bounds),
    found=rows,
    done=rows,
  )


def _step(
  ball, bounds, propose, schedule, loss_fn, criterion, logits_fn, state
) -> tuple[State, types.PyTree]:
  delta = _propose(ball, bounds, propose, schedule, state)
  x_new = jnp.clip(state.x + delta, *bounds)
  keys = oracles.step_keys(state.keys, state.step)
  outputs = oracles.outputs(logits_fn, keys, x_new)
  loss = oracles.loss(loss_fn, outputs, state.y).astype(state.best.dtype)
  found = oracles.satisfied(criterion, outputs, state.y)
  better = (loss > state.best) | found
  state = state._replace(
    step=state.step + 1,
    delta=oracles.choose(better, delta, state.delta),
    best=jnp.where(better, loss, state.best),
    x_adv=oracles.choose(better, x_new, state.x_adv),
    found=found,
    done=found,
  )
  return state, outputs


def _propose(ball, bounds, propose, schedule, state) -> Array:
  """The perturbation to ask about: the start, or a change of the best."""
  low, high = bounds[0] - state.x, bounds[1] - state.x

  def one(key, step, delta, low, high):
    share = window_share(step - 1, *schedule)
    return propose(ball, key, delta, share, low, high)

  keys = oracles.own_keys(state.keys, state.step)
  changed = jax.vmap(one)(keys, state.step, state.delta, low, high)
  changed = changed.astype(state.delta.dtype)
  return oracles.choose(state.step > 0, changed, state.delta)
