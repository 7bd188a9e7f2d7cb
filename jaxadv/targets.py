"""Whom a targeted attack aims at: `y` for targeted losses and criteria."""

import jax
import jax.numpy as jnp

Array = jax.Array


def random(key: Array, label: Array, num_classes: int) -> Array:
  """A class drawn uniformly from the others [B].

  Raises:
    ValueError: there are fewer than two classes.
  """
  if num_classes < 2:
    raise ValueError(f"num_classes must be >= 2, got {num_classes}")
  shift = jax.random.randint(key, jnp.shape(label), 1, num_classes)
  return (label + shift) % num_classes


def least_likely(logits: Array) -> Array:
  """The class of the smallest logit [B] (Kurakin et al., 2017)."""
  return jnp.argmin(logits, axis=-1)


def likeliest_wrong(logits: Array, label: Array) -> Array:
  """The class of the largest logit other than the label's [B]."""
  is_label = jnp.arange(logits.shape[-1])[None] == label[:, None]
  return jnp.argmax(jnp.where(is_label, -jnp.inf, logits), axis=-1)
