"""Linearised decision boundaries: what DeepFool and FAB ask the model for.

Between the label y and another class k, the network near `x` is taken as
linear: `lead + sum(normal * (z - x))` with `lead = z_k - z_y`, which is
negative where the label wins. One oracle call each.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxadv import checks, norms, oracles, types

Array = jax.Array


class Boundary(NamedTuple):
  """The model's outputs, the lead of the other class [B], its slope."""

  outputs: types.PyTree
  lead: Array
  normal: Array


@dataclasses.dataclass(frozen=True)
class Likeliest:
  """The classes of the `count` largest logits of ONE example; all, if fewer.

  Equal when built twice, so that the compiled program is found again.
  """

  count: int

  def __post_init__(self) -> None:
    checks.num_steps(self.count, "num_candidates")
    if self.count < 2:
      raise ValueError(
        f"num_candidates must be at least 2 (the label and another class), "
        f"got num_candidates={self.count}"
      )

  def __call__(self, logits: Array) -> Array:
    return jax.lax.top_k(logits, min(self.count, logits.shape[-1]))[1]


def targeted(
  logits_fn: types.LogitsFn,
  keys: Array,
  x: Array,
  label: Array,
  target: Array,
) -> Boundary:
  """The boundary to the class `target` [B], by one gradient.

  A negative target stands for the likeliest class other than the label.
  """
  answer = oracles.loss_and_gradient(logits_fn, _lead, keys, x, (label, target))
  return Boundary(answer.outputs, answer.loss, answer.grad)


def nearest(
  norm: norms.Norm,
  candidates: Callable[[Array], Array],
  logits_fn: types.LogitsFn,
  keys: Array,
  x: Array,
  label: Array,
) -> Boundary:
  """The nearest of the boundaries to the `candidates`, by their Jacobian.

  `candidates` chooses classes from the logits of ONE example (`Likeliest`).
  Near by `|lead| / dual norm of the normal`; boundaries that do not depend on
  the input are infinitely far.
  """
  answer = oracles.jacobian(logits_fn, keys, x, candidates)
  pick = jax.vmap(_nearest, in_axes=(None, 0, 0, 0, 0))
  lead, normal = pick(norm, answer.logits, answer.classes, answer.grads, label)
  return Boundary(answer.logits, lead, normal)


def _lead(logits: Array, y: tuple[Array, Array]) -> Array:
  label, target = y
  is_label = jnp.arange(logits.shape[-1]) == label
  likeliest = jnp.argmax(jnp.where(is_label, -jnp.inf, logits))
  return logits[jnp.where(target < 0, likeliest, target)] - logits[label]


def _nearest(norm, logits, classes, grads, label) -> tuple[Array, Array]:
  is_label = classes == label
  # The label is missing only where it has lost to every candidate.
  own = jnp.argmax(is_label)
  leads = logits[classes] - logits[classes[own]]
  normals = grads - grads[own][None]
  rates = jax.vmap(norm.dual)(normals)
  reachable = (rates > 0) & ~is_label
  distances = jnp.where(
    reachable, jnp.abs(leads) / jnp.where(reachable, rates, 1.0), jnp.inf
  )
  chosen = jnp.argmin(distances)
  return leads[chosen], normals[chosen]
