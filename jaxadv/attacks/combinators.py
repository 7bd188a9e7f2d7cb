"""`Attack -> Attack`: several rounds of an attack, expectations.

A round that ends without success costs one more step, in which the model is
asked about its result; so a combinator asks nothing on top of its kernel's
steps and its budget is exact.

Rounds of an attack with a fixed budget end with the first success. Rounds of a
minimum-norm attack, told by the `size_fn` that it minimises, all take place:
the nearest of their successes is the result, and only one of size 0 ends them.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxadv import checks, criteria, losses, numerics, oracles, types
from jaxadv.attacks import target_order

Array = jax.Array
Partial = jax.tree_util.Partial
# The size of ONE perturbation, such as `norms.L2` or `norms.L0`.
SizeFn = Callable[[Array], Array]


class State(NamedTuple):
  """The rows of an attack in rounds (see `types.State`)."""

  x: Array
  y: types.PyTree
  keys: Array
  round: Array  # The round a row is in; -1 while targets are to be chosen.
  step: Array  # Steps taken in this round.
  inner: Any
  targets: Array | None
  best: Array  # The loss at `x_adv`, or minus its distance.
  x_adv: Array
  found: Array
  done: Array


def restarts(
  attack: types.Attack,
  num_restarts: int,
  *,
  loss_fn: types.LossFn = losses.margin,
  criterion: types.Criterion | None = None,
  size_fn: SizeFn | None = None,
) -> types.Attack:
  """Runs an attack from several keys; keeps the worst case.

  A row is done with its first success; without one the round of greatest
  `loss_fn` is kept. Costs `num_restarts * (attack.num_steps + 1)` steps at
  most. Restarts are confirmed by the model, not by the attack's word.

  Args:
    attack: What to repeat; its own `y` and criterion stay as they are.
    num_restarts: Rounds, at least 1.
    loss_fn: Ranks the rounds, of the attack's `y`.
    criterion: Success of a round, of the same `y`; the attack's own by default.
    size_fn: For minimum-norm attacks, what they minimise, such as `norms.L2` or
      `norms.L0`: keeps the nearest success instead.

  Raises:
    TypeError: `num_restarts` is not an integer.
    ValueError: `num_restarts` is below 1.
  """
  checks.attack(attack)
  checks.num_steps(num_restarts, "num_restarts")
  criterion = attack.threat.criterion if criterion is None else criterion
  judge = _judge(loss_fn, criterion, size_fn)
  return attack._replace(
    init=Partial(_init_restarts, attack),
    step=Partial(_step, attack, num_restarts, None, *judge),
    num_steps=num_restarts * (attack.num_steps + 1),
    threat=attack.threat._replace(criterion=types.hashable(criterion)),
  )


def multi_targeted(
  attack: types.Attack,
  num_targets: int | target_order.Order = 9,
  *,
  loss_fn: types.LossFn = losses.margin,
  criterion: types.Criterion = criteria.misclassified,
  size_fn: SizeFn | None = None,
) -> types.Attack:
  """Runs a targeted attack against each of the likeliest wrong classes.

  The first step asks for the logits of the clean input and orders the classes;
  round r aims at the r-th wrong one. Any misclassification is a success. 9
  targets are AutoAttack's.

  Minimum-norm attacks by gradient steps (DDN, FMN, ALMA) head for the class
  that is likeliest, which need not be the nearest. On a linear model this finds
  the nearest:

    multi_targeted(
      fmn(norms.L2, loss_fn=losses.difference,
          criterion=criteria.misclassified_pair),
      size_fn=norms.L2)

  Args:
    attack: An attack whose `y` is `(label, target)`, such as
      `pgd(..., loss_fn=losses.targeted_dlr,
      criterion=criteria.misclassified_pair)`.
    num_targets: Rounds, at most the number of classes less one; or an order of
      its own, such as `NearestTargets(9, norms.Linf)`: MALT.
    loss_fn: Ranks rounds without success; of `(logits, label)`.
    criterion: Success; of `(logits, label)`.
    size_fn: As in `restarts`.

  Raises:
    TypeError: `num_targets` is not an integer.
    ValueError: `num_targets` is below 1, or too large for the model.

  Reference: Gowal et al., "An alternative surrogate loss for PGD-based
  adversarial testing", 2019.
  """
  checks.attack(attack)
  order = target_order.of(num_targets)
  rounds, judge = order.count, _judge(loss_fn, criterion, size_fn)
  return attack._replace(
    init=Partial(_init_targets, attack, types.Static(_Count(rounds))),
    step=Partial(_step, attack, rounds, types.Static(order), *judge),
    num_steps=1 + rounds * (attack.num_steps + 1),
    threat=attack.threat._replace(criterion=types.hashable(criterion)),
  )


def within(attack: types.Attack, ball: types.Ball) -> types.Attack:
  """Gives an attack that knows no radius a ball: only inside is a success.

  A minimum-norm attack looks for the nearest success wherever that is. Judged
  within a ball it has failed where the nearest is outside:

    record = engine.craft(within(fmn(norms.L2), balls.L2(0.5)), ...)
    evaluation.summary(clean_wrong, [record])

  Args:
    attack: Runs as before.
    ball: What its results are judged by.

  Raises:
    TypeError: `ball` is none.
    ValueError: the attack has another ball already.
  """
  checks.attack(attack)
  checks.ball(ball)
  own = attack.threat.ball
  if own is not None and not types.same(own, ball):
    raise ValueError(
      f"ball={ball!r} contradicts that of the attack, {own!r}: give it to the "
      "attack's factory alone"
    )
  return attack._replace(threat=attack.threat._replace(ball=ball))


def eot(attack: types.Attack, num_samples: int) -> types.Attack:
  """Expectation over transformation: every question asked `num_samples` times.

  The loss and so its gradient are means over draws of the model's randomness;
  success is judged by the mean probabilities of the draws, and so are the
  boundaries of attacks that ask for the gradients of several classes.

  Args:
    attack: What asks.
    num_samples: Draws per question, each at the price of a question.

  Raises:
    TypeError: `num_samples` is not an integer.
    ValueError: `num_samples` is below 1.

  Reference: Athalye, Engstrom, Ilyas, Kwok, "Synthesizing robust adversarial
  examples", 2018.
  """
  checks.attack(attack)
  checks.num_steps(num_samples, "num_samples")
  return attack._replace(
    step=Partial(_step_sampled, attack, types.Static(_Count(num_samples))),
    forwards=attack.forwards * num_samples,
    backwards=attack.backwards * num_samples,
  )


@dataclasses.dataclass(frozen=True)
class _Count:
  # A number that shapes depend on, so it belongs to the pytree's structure.
  value: int

  def __call__(self) -> int:
    return self.value


def _step_sampled(attack, num_samples, logits_fn, state):
  return attack.step(oracles.Sampled(logits_fn, num_samples()), state)


def _init_restarts(attack, keys, x, y) -> State:
  inner = attack.init(_round_keys(keys, jnp.zeros(len(x), jnp.int32)), x, y)
  return _first_state(keys, x, y, inner, round_=0, targets=None)


def _init_targets(attack, num_targets, keys, x, y) -> State:
  targets = jnp.zeros((len(x), num_targets()), jnp.int32)
  inner = attack.init(keys, x, (y, targets[:, 0]))
  return _first_state(keys, x, y, inner, round_=-1, targets=targets)


def _first_state(keys, x, y, inner, round_, targets) -> State:
  rows = jnp.zeros(len(x), jnp.int32)
  return State(
    x=x,
    y=y,
    keys=keys,
    round=rows + round_,
    step=rows,
    inner=inner,
    targets=targets,
    best=jnp.full(len(x), -jnp.inf, numerics.wide_type(x)),
    x_adv=x,
    found=rows > 0,
    done=rows > 0,
  )


def _judge(loss_fn, criterion, size_fn) -> tuple:
  size_fn = None if size_fn is None else types.hashable(size_fn)
  return types.hashable(loss_fn), types.hashable(criterion), size_fn


class _Verdict(NamedTuple):
  better: Array  # Whether the result of the round is the best so far.
  score: Array  # What makes it so.
  struck: Array  # Whether the kernel's own point is a success already.
  found: Array
  over: Array  # Whether no further round can gain anything.


def _step(
  attack, num_rounds, order, loss_fn, criterion, size_fn, logits_fn, state
) -> tuple[State, types.PyTree]:
  choosing = state.round < 0
  ended = choosing | state.inner.done | (state.step >= attack.num_steps)
  result = oracles.choose(choosing, state.x, state.inner.x_adv)
  model = oracles.redirected(logits_fn, ended, result)
  inner, outputs = attack.step(model, state.inner)
  holds = oracles.satisfied(criterion, outputs, state.y)
  if size_fn is None:
    loss = oracles.loss(loss_fn, outputs, state.y)
    verdict = _worst(state, choosing, ended, inner, loss, holds)
  else:
    verdict = _nearest(state, size_fn, result, holds & ended)
  targets = state.targets
  if targets is not None:
    keys = oracles.own_keys(state.keys, state.round)
    ranked = order(choosing, logits_fn, keys, state.x, outputs, state.y)
    targets = oracles.choose(choosing, ranked, targets)
  state = state._replace(targets=targets)
  x_adv = oracles.choose(verdict.better, result, state.x_adv)
  round_ = state.round + ended
  done = verdict.over | (round_ >= num_rounds)
  state = state._replace(
    round=round_,
    step=jnp.where(ended, 0, state.step + 1),
    inner=_next_round(attack, state, round_, ended & ~done, inner),
    best=jnp.where(verdict.better, verdict.score, state.best),
    x_adv=oracles.choose(verdict.struck, inner.x_adv, x_adv),
    found=verdict.found,
    done=done,
  )
  return state, outputs


def _worst(state, choosing, ended, inner, loss, holds) -> _Verdict:
  won = holds & ended
  # A success on the way: the answer that ended the round has to confirm it.
  struck = holds & inner.found & inner.done & ~ended
  # The clean input, asked about for its targets, is a result only if it won.
  better = ended & (won | ((loss > state.best) & ~choosing))
  found = won | struck
  return _Verdict(better, loss, struck, found, over=found)


def _nearest(state, size_fn, result, won) -> _Verdict:
  dtype = numerics.wide_type(state.x)
  delta = result.astype(dtype) - state.x.astype(dtype)
  size = jax.vmap(size_fn)(delta)
  better = won & (-size > state.best)
  nowhere = jnp.zeros_like(won)
  found = state.found | won
  return _Verdict(better, -size, nowhere, found, over=won & (size == 0))


def _next_round(attack, state, round_, rows, inner):
  def start():
    y = state.y
    if state.targets is not None:
      index = jnp.clip(round_, 0, state.targets.shape[1] - 1)
      y = (y, jnp.take_along_axis(state.targets, index[:, None], 1)[:, 0])
    fresh = attack.init(_round_keys(state.keys, round_), state.x, y)
    return oracles.choose(rows, fresh, inner)

  return jax.lax.cond(jnp.any(rows), start, lambda: inner)


def _round_keys(keys: Array, round_: Array) -> Array:
  return jax.vmap(jax.random.fold_in)(keys, round_)
