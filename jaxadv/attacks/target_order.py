"""The order in which attacks aim at the wrong classes, one after another.

Of the clean input alone; a number stands for so many of the likeliest. An
order is a static value: it is hashed, and another one compiles anew.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxadv import checks, norms, numerics, oracles, types

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class LikeliestTargets:
  """The `count` wrong classes of largest logit, in the order of their logits.

  Costs no question of its own.
  """

  count: int

  def __post_init__(self) -> None:
    checks.num_steps(self.count, "num_targets")

  def __call__(
    self,
    rows: Array,
    logits_fn: types.LogitsFn,
    keys: Array,
    x: Array,
    outputs: types.PyTree,
    label: Array,
  ) -> Array:
    """The targets [B, count], from the outputs at the clean inputs `x`."""
    del rows, logits_fn, keys, x
    return oracles.likeliest_wrong(outputs, label, self.count)


@dataclasses.dataclass(frozen=True)
class NearestTargets:
  """MALT: the `count` wrong classes whose linearised boundaries are nearest.

  Near by `(z_label - z_target) / dual norm of grad(z_label - z_target)`, all at
  the clean input; boundaries without a slope come last, in the order of logits.
  Only the `num_candidates` likeliest wrong classes are looked at, or all, if
  there are fewer.

  One more question of one forward and a backward pass per candidate, in the
  first step of a row: `forwards` and `backwards` of the attack, which are those
  of every step, do not count it. A batch asks it as a whole, so attack rows
  that start together (`engine.run`) where this counts.

  Attributes:
    count: Targets.
    norm: That of the threat, such as `norms.Linf`.
    num_candidates: 100 is the paper's.

  Reference: Melamed, Yehudai, Vardi, "MALT powers up adversarial attacks",
  2024.
  """

  count: int
  norm: norms.Norm
  num_candidates: int = 100

  def __post_init__(self) -> None:
    checks.num_steps(self.count, "num_targets")
    checks.norm(self.norm)
    checks.num_steps(self.num_candidates, "num_candidates")
    if self.num_candidates < self.count:
      raise ValueError(
        f"num_candidates must be at least the number of targets "
        f"({self.count}), got num_candidates={self.num_candidates}"
      )

  def __call__(
    self,
    rows: Array,
    logits_fn: types.LogitsFn,
    keys: Array,
    x: Array,
    outputs: types.PyTree,
    label: Array,
  ) -> Array:
    """The targets [B, count] of `rows` [B]; the others' mean nothing."""
    num_classes = oracles.mean_logits(outputs).shape[-1]
    num_candidates = min(self.num_candidates, num_classes - 1)
    candidates = oracles.likeliest_wrong(
      outputs, label, max(num_candidates, self.count)
    )

    def ask() -> Array:
      answer = oracles.gradients(
        logits_fn, _leads, keys, x, (label, candidates)
      )
      return jax.vmap(self._order)(answer.loss, answer.grad)

    order = jax.lax.cond(
      jnp.any(rows), ask, lambda: jnp.zeros((len(x), self.count), jnp.int32)
    )
    return jnp.take_along_axis(candidates, order, axis=1)

  def _order(self, leads: Array, grads: Array) -> Array:
    """Places of the nearest candidates [count] of ONE example."""
    grads = grads.astype(numerics.wide_type(grads))
    rates = jax.vmap(self.norm.dual)(grads)
    gaps = jnp.maximum(-leads, 0.0).astype(rates.dtype)
    known = rates > 0
    distances = jnp.where(known, gaps / jnp.where(known, rates, 1.0), jnp.inf)
    return jnp.argsort(distances, stable=True)[: self.count].astype(jnp.int32)


Order = LikeliestTargets | NearestTargets


def of(num_targets: int | Order) -> Order:
  """The order that a number of targets stands for; orders pass unchanged."""
  if isinstance(num_targets, LikeliestTargets | NearestTargets):
    return num_targets
  return LikeliestTargets(num_targets)


def _leads(logits: Array, y: tuple[Array, Array]) -> Array:
  label, candidates = y
  return logits[candidates] - logits[label]
