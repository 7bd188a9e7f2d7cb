"""What an attack is given beside the input: `(keys, logits, label) -> y`.

All are of N examples: keys [N], the logits of the clean inputs [N, C] and their
labels [N].
"""

import jax

from jaxadv import targets

Array = jax.Array


def labels(keys: Array, logits: Array, label: Array) -> Array:
  """Away from the label."""
  del keys, logits
  return label


def random_targets(keys: Array, logits: Array, label: Array) -> Array:
  """A wrong class, drawn for each example on its own."""
  draw = jax.vmap(targets.random, (0, 0, None))
  return draw(keys, label, logits.shape[-1])


def least_likely(keys: Array, logits: Array, label: Array) -> Array:
  """The class that the clean input looks least like to the model."""
  del keys, label
  return targets.least_likely(logits)


def random_goals(keys: Array, logits: Array, label: Array) -> Array:
  """The goal output that is sure of a random wrong class."""
  target = random_targets(keys, logits, label)
  return jax.nn.one_hot(target, logits.shape[-1])
