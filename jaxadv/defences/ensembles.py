"""Several networks that answer as one.

`combine` makes one model of trained ones, whatever they are; attack the result,
not its members. `Ensemble` is a network of K members to be trained together,
whose training view shows each member's logits (diversity training with
`robust_losses.adp`). How the members' answers become one is a function of ONE
example, `(logits[K, C]) -> logits[C]`: `mean_probability`, `mean_logit`,
`vote`, or your own.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxadv import types

Array = jax.Array
Partial = jax.tree_util.Partial
# ONE example: from the members' logits [K, C] to those of the ensemble [C].
Aggregate = Callable[[Array], Array]
# How flax names all that an `Ensemble` holds, after its attribute.
_SCOPE = "member"


def mean_probability(logits: Array) -> Array:
  """The log of the mean of the members' probabilities."""
  mean = jax.nn.logsumexp(jax.nn.log_softmax(logits), axis=0)
  return mean - jnp.log(len(logits))


def mean_logit(logits: Array) -> Array:
  """The mean of the members' logits."""
  return jnp.mean(logits, axis=0)


def vote(logits: Array) -> Array:
  """The number of members that predict each class.

  Half of the mean probability breaks ties; it is also the only part of a vote
  that has a gradient, so gradient attacks are not blind to it.
  """
  chosen = jax.nn.one_hot(jnp.argmax(logits, axis=1), logits.shape[1])
  mean = jnp.mean(jax.nn.softmax(logits), axis=0)
  return jnp.sum(chosen, axis=0) + 0.5 * mean


def combine(
  logits_fns: Sequence[types.LogitsFn],
  aggregate: Aggregate = mean_probability,
) -> types.LogitsFn:
  """One model of several, a pytree whose leaves are the weights of all.

  Models of one architecture are stacked and run as one vmapped model; others
  one after the other.

  Args:
    logits_fns: Bound models with the same classes.
    aggregate: How their answers become one; a function at module level.

  Raises:
    ValueError: there is no model.
  """
  if not logits_fns:
    raise ValueError("logits_fns must hold at least one model, got none")
  aggregate = types.hashable(aggregate)
  if len({_architecture(model) for model in logits_fns}) > 1:
    return Partial(_one_by_one, tuple(logits_fns), aggregate)
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *logits_fns)
  return Partial(_stacked, stacked, aggregate)


def _architecture(model: types.LogitsFn):
  leaves, structure = jax.tree.flatten(model)
  kinds = ((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
  return structure, tuple(kinds)


def _stacked(model, aggregate, keys, x) -> Array:
  ask = jax.vmap(lambda model: model(keys, x), out_axes=1)
  return jax.vmap(aggregate)(ask(model))


def _one_by_one(models, aggregate, keys, x) -> Array:
  logits = jnp.stack([model(keys, x) for model in models], axis=1)
  return jax.vmap(aggregate)(logits)


def each_member(fn: Callable[..., types.PyTree], *trees: types.PyTree):
  """`fn(*trees)`, of the weights of an `Ensemble` for each member on its own.

  `fn` then sees arrays without the members' axis, and its results get it back.
  """
  alone = not all(
    isinstance(tree, Mapping) and set(tree) == {_SCOPE} for tree in trees
  )
  return fn(*trees) if alone else jax.vmap(fn)(*trees)


class Ensemble(nn.Module):
  """K networks of one architecture, trained together.

  Every variable of the member has a leading axis K. Logits are [B, C] in
  evaluation and those of the members, [B, K, C], in training.

  Attributes:
    member: The network of each member, called as `member(x, train=...)`.
    num_members: K; 3 as in the code of Pang et al. (2019).
    aggregate: How their answers become one in evaluation.
  """

  member: nn.Module
  num_members: int = 3
  aggregate: Aggregate = mean_probability

  @nn.compact
  def __call__(self, x: Array, train: bool = False) -> Array:
    """Logits of `x`; of each member if `train`."""
    ask = nn.vmap(
      lambda member, x: member(x, train=train),
      in_axes=None,
      out_axes=1,
      axis_size=self.num_members,
      variable_axes={"params": 0, "batch_stats": 0},
      split_rngs={"params": True, "dropout": True},
    )
    logits = ask(self.member, x)
    return logits if train else jax.vmap(self.aggregate)(logits)
