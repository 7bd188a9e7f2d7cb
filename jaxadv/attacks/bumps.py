"""The bumps of which Square Attack's L2 and L1 perturbations are made.

A bump of side s is two halves of opposite sign, each highest in its middle and
falling off in square rings, the k-th ring from the middle having the height
`sum_{j=k+1}^{s//2+1} j^-decay`; turned by 90 degrees half of the time.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array


class BumpNorm(NamedTuple):
  """A norm `root(sum(mass(delta)))` and how steeply its bumps fall off."""

  mass: Callable[[Array], Array]
  root: Callable[[Array], Array]
  decay: int


L2 = BumpNorm(jnp.square, jnp.sqrt, 2)
L1 = BumpNorm(jnp.abs, jnp.asarray, 4)


def grid(norm: BumpNorm, key: Array, like: Array) -> Array:
  """Bumps side by side, five along the shorter axis of `like` [H, W, C].

  Each has a random sign per channel and is turned or not.
  """
  height, width, channels = like.shape
  side = max(min(height, width) // 5, 1)
  shape = (height // side, 1, width // side, 1)
  key_turn, key_sign = jax.random.split(key)
  turned = jax.random.bernoulli(key_turn, shape=(*shape, 1))
  sign = jax.random.rademacher(key_sign, (*shape, channels), like.dtype)
  place, side_ = jnp.arange(side), jnp.asarray(side)
  one = bump(norm, place, place, side_, jnp.asarray(False))
  upright = one.reshape(1, side, 1, side, 1)
  across = one.T.reshape(1, side, 1, side, 1)
  tiles = sign * jnp.where(turned, across, upright)
  covered = (height // side * side, width // side * side)
  rest = (height - covered[0], width - covered[1])
  margins = [(n // 2, n - n // 2) for n in rest]
  return jnp.pad(tiles.reshape(*covered, channels), [*margins, (0, 0)])


def bump(norm: BumpNorm, rows, columns, side, turned) -> Array:
  """The bump [rows, columns, 1], of norm 1 within its window.

  The rings are counted by the greater of two distances, and the height falls
  with the distance: so heights are looked up per row and per column only.
  """
  table = _heights(norm, max(len(rows), len(columns)))
  halves = [side // 2, side - side // 2]

  def across(place):  # Along the axis on which the halves follow each other.
    upper = place < halves[0]
    middle = jnp.where(upper, halves[0] // 2, halves[0] + halves[1] // 2)
    return table[jnp.abs(place - middle)]

  def scale(place):
    factors = [
      divide(1.0, norm.root(_half_mass(norm, table, half, side)))
      for half in halves
    ]
    both = norm.root(jnp.where(side > 1, 2.0, 1.0))
    return jnp.where(place < halves[0], factors[0], -factors[1]) / both

  def along(place):
    return table[jnp.abs(place - side // 2)]

  one = jnp.ones(())
  row_sum = jnp.where(turned, along(rows), across(rows))[:, None, None]
  column_sum = jnp.where(turned, across(columns), along(columns))[None, :, None]
  row_scale = jnp.where(turned, one, scale(rows))[:, None, None]
  column_scale = jnp.where(turned, scale(columns), one)[None, :, None]
  height = table[side // 2 + 1] - jnp.maximum(row_sum, column_sum)
  return height * row_scale * column_scale


def _half_mass(norm: BumpNorm, table: Array, half: Array, side: Array) -> Array:
  """The mass of the rings of one half, before it is scaled to norm 1."""
  ring = jnp.arange(len(table))

  def within(size):  # How many places lie within so many rings.
    middle = size // 2
    return jnp.minimum(size, middle + ring + 1) - jnp.maximum(0, middle - ring)

  places = jnp.diff(within(half) * within(side), prepend=0)
  height = jnp.maximum(table[side // 2 + 1] - table, 0.0)
  return jnp.sum(places * norm.mass(height))


def _heights(norm: BumpNorm, longest: int) -> Array:
  """`sum_{j=1}^n j^-decay` for every n up to `longest` + 1."""
  terms = jnp.arange(1.0, longest + 2) ** -norm.decay
  return jnp.cumsum(jnp.pad(terms, (1, 0)))


def divide(values, size: Array) -> Array:
  """`values / size`; zero where the size is."""
  return jnp.where(size > 0, values / jnp.where(size > 0, size, 1.0), 0.0)
