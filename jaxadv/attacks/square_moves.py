"""Where Square Attack starts and what it tries next: one example, each norm.

`moves(ball)` looks both up by the type of the ball; a ball of your own takes
part with `moves.register(MyBall, ...)`. Sizes of windows vary from example to
example, so windows are masks over index grids and all shapes are fixed. A
proposal draws `channels` random signs and a few offsets, not noise per pixel.

The bump of the L2 and L1 windows (side s): two halves of opposite sign, each
highest in its middle and falling off in square rings, the k-th ring from the
middle having the height `sum_{j=k+1}^{s//2+1} j^-decay`; turned by 90 degrees
half of the time.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxadv import balls, numerics

Array = jax.Array

# Keeps proposals inside the ball despite rounding (AutoAttack's, for L1).
_SLACK = 1e-6


class Moves(NamedTuple):
  """Both are for ONE example [H, W, C] and stay inside ball and box.

  `low` and `high` [H, W, C] bound the perturbation.

  Attributes:
    start: `(ball, key, low, high) -> delta`.
    propose: `(ball, key, delta, share, low, high) -> delta`, changing a window
      of about `share` of the pixels.
  """

  start: Callable[..., Array]
  propose: Callable[..., Array]


@functools.singledispatch
def moves(ball: Any) -> Moves:
  """The moves inside a kind of ball.

  Raises:
    TypeError: there are none for it.
  """
  raise TypeError(
    f"ball must be a balls.Linf, L2 or L1 (or one of these in balls.Masked), "
    f"got {type(ball).__name__}: register its moves with square_moves.moves"
  )


@moves.register
def _(ball: balls.Linf) -> Moves:
  return Moves(stripes, recolour)


@moves.register
def _(ball: balls.L2) -> Moves:
  return Moves(tiles_l2, exchange_l2)


@moves.register
def _(ball: balls.L1) -> Moves:
  return Moves(tiles_l1, exchange_l1)


@moves.register
def _(ball: balls.Masked) -> Moves:
  return Moves(*map(_Projected, moves(ball.ball)))


@dataclasses.dataclass(frozen=True)
class _Projected:
  """A move of the ball that a mask narrows down."""

  move: Callable[..., Array]

  def __call__(self, ball, *args: Array) -> Array:
    return ball.project_box(self.move(ball, *args), *args[-2:])


def side_linf(share: Array, height: int, width: int) -> Array:
  """`round(sqrt(share * height * width))`, from 1 to the shorter side."""
  side = jnp.round(jnp.sqrt(share * height * width)).astype(jnp.int32)
  return jnp.clip(side, 1, min(height, width))


def side_odd(share: Array, height: int, width: int) -> Array:
  """As for Linf, but at least 3 and odd unless the image is too small."""
  side = jnp.round(jnp.sqrt(share * height * width)).astype(jnp.int32)
  return jnp.minimum(jnp.maximum(side, 3) // 2 * 2 + 1, min(height, width))


def stripes(ball, key: Array, low: Array, high: Array) -> Array:
  """Vertical stripes of +eps and -eps, one sign per column and channel."""
  sign = jax.random.rademacher(key, (1, *low.shape[1:]), low.dtype)
  return jnp.clip(ball.eps * sign, low, high)


def recolour(ball, key: Array, delta, share, low, high) -> Array:
  """A window of +eps or -eps, one sign per channel.

  Where that would change nothing the opposite signs are taken, which do unless
  nothing can.
  """
  height, width, channels = delta.shape
  side = side_linf(share, height, width)
  draw = jax.random.uniform(key, (2 + channels,))
  rows = _coordinates(draw[0], side, height)
  columns = _coordinates(draw[1], side, width)
  window = _window(rows, columns, side)
  colour = ball.eps * _signs(draw[2:])
  plain, opposite = (
    jnp.where(window, jnp.clip(value, low, high), delta)
    for value in (colour, -colour)
  )
  return jnp.where(jnp.all(plain == delta), opposite, plain)


class _Norm(NamedTuple):
  """A norm `root(sum(mass(delta)))` and how steeply its bumps fall off."""

  mass: Callable[[Array], Array]
  root: Callable[[Array], Array]
  decay: int


_L2 = _Norm(jnp.square, jnp.sqrt, 2)
_L1 = _Norm(jnp.abs, jnp.asarray, 4)


def tiles_l2(ball, key: Array, low: Array, high: Array) -> Array:
  """A grid of bumps with random signs, of norm eps."""
  delta = ball.eps * (1 - _SLACK) * numerics.unit_l2(_tiles(_L2, key, low))
  return jnp.clip(delta, low, high)


def tiles_l1(ball, key: Array, low: Array, high: Array) -> Array:
  """A grid of bumps with random signs, each as large as the bounds are wide."""
  return ball.project_box((high - low) * _tiles(_L1, key, low), low, high)


def exchange_l2(ball, key: Array, delta, share, low, high) -> Array:
  """Moves the L2 norm of one window, and what eps leaves, into another."""
  delta = _exchange(_L2, 1, _anywhere, ball.eps, key, delta, share)
  return jnp.clip(delta, low, high)


def exchange_l1(ball, key: Array, delta, share, low, high) -> Array:
  """Moves the L1 norm of one window, and what eps leaves, into another.

  With several channels the window gets that many times as much, as in
  AutoAttack; the projection then shrinks all of the perturbation. With one,
  norm is free only where a window gives it up: that window is drawn where there
  is some, since a perturbation this sparse is zero in most windows.
  """
  channels = delta.shape[-1]
  place = _by_mass if channels == 1 else _anywhere
  delta = _exchange(_L1, channels, place, ball.eps, key, delta, share)
  # One channel stays inside the ball, and the projection onto it takes as long
  # as a small network.
  if channels == 1:
    return jnp.clip(delta, low, high)
  return ball.project_box(delta, low, high)


def _exchange(norm, gain, place_source, eps, key, delta, share) -> Array:
  height, width, channels = delta.shape
  side = side_odd(share, height, width)
  draw = jax.random.uniform(key, (7 + channels,))
  mass = norm.mass(delta)
  rows, columns = _anywhere(draw, mass, side)
  target = _window(rows, columns, side)
  source_rows, source_columns = place_source(
    jnp.concatenate([draw[2:4], draw[-2:]]), mass, side
  )
  source = _window(source_rows, source_columns, side)
  old = jnp.where(target, delta, 0.0)
  old_size = norm.root(_per_channel(jnp.where(target, mass, 0.0)))
  bump = jnp.where(target, _bump(norm, rows, columns, side, draw[4] < 0.5), 0.0)
  new = bump * _signs(draw[5:-2]) + _divide(old, old_size)
  new_size = norm.root(_per_channel(norm.mass(new)))
  freed = _per_channel(jnp.where(target | source, mass, 0.0))
  left = norm.mass(jnp.asarray(eps * (1 - _SLACK))) - jnp.sum(mass)
  size = gain * norm.root(jnp.maximum(left / channels + freed, 0.0))
  kept = jnp.where(source, 0.0, delta)
  return jnp.where(target, _divide(new, new_size) * size, kept)


def _anywhere(draw: Array, mass: Array, side: Array) -> tuple[Array, Array]:
  """Rows and columns counted from the corner of a random window."""
  height, width, _ = mass.shape
  return (
    _coordinates(draw[0], side, height),
    _coordinates(draw[1], side, width),
  )


def _by_mass(draw: Array, mass: Array, side: Array) -> tuple[Array, Array]:
  """As `_anywhere`, around a pixel drawn in proportion to its mass."""
  pixels = jnp.sum(mass, axis=-1)
  row = _index(draw[0], jnp.sum(pixels, axis=1))
  column = _index(draw[1], pixels[row])
  return (
    _around(row, draw[2], side, len(pixels)),
    _around(column, draw[3], side, len(pixels[0])),
  )


def _tiles(norm: _Norm, key: Array, like: Array) -> Array:
  height, width, channels = like.shape
  side = max(min(height, width) // 5, 1)
  shape = (height // side, 1, width // side, 1)
  key_turn, key_sign = jax.random.split(key)
  turned = jax.random.bernoulli(key_turn, shape=(*shape, 1))
  sign = jax.random.rademacher(key_sign, (*shape, channels), like.dtype)
  place, side_ = jnp.arange(side), jnp.asarray(side)
  bump = _bump(norm, place, place, side_, jnp.asarray(False))
  upright = bump.reshape(1, side, 1, side, 1)
  across = bump.T.reshape(1, side, 1, side, 1)
  tiles = sign * jnp.where(turned, across, upright)
  covered = (height // side * side, width // side * side)
  rest = (height - covered[0], width - covered[1])
  margins = [(n // 2, n - n // 2) for n in rest]
  return jnp.pad(tiles.reshape(*covered, channels), [*margins, (0, 0)])


def _bump(norm: _Norm, rows, columns, side, turned) -> Array:
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
      _divide(1.0, norm.root(_half_mass(norm, table, half, side)))
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


def _half_mass(norm: _Norm, table: Array, half: Array, side: Array) -> Array:
  """The mass of the rings of one half, before it is scaled to norm 1."""
  ring = jnp.arange(len(table))

  def within(size):  # How many places lie within so many rings.
    middle = size // 2
    return jnp.minimum(size, middle + ring + 1) - jnp.maximum(0, middle - ring)

  places = jnp.diff(within(half) * within(side), prepend=0)
  height = jnp.maximum(table[side // 2 + 1] - table, 0.0)
  return jnp.sum(places * norm.mass(height))


def _heights(norm: _Norm, longest: int) -> Array:
  """`sum_{j=1}^n j^-decay` for every n up to `longest` + 1."""
  terms = jnp.arange(1.0, longest + 2) ** -norm.decay
  return jnp.cumsum(jnp.pad(terms, (1, 0)))


def _coordinates(draw: Array, side: Array, length: int) -> Array:
  """Places [length] counted from a random offset of a window of `side`.

  Rounding gives the first and the last offset half the chance of the others.
  """
  offset = jnp.round(draw * (length - side)).astype(jnp.int32)
  return jnp.arange(length) - offset


def _index(draw: Array, mass: Array) -> Array:
  """A place, drawn in proportion to the mass there."""
  upto = jnp.cumsum(mass)
  return jnp.minimum(jnp.sum(upto <= draw * upto[-1]), len(mass) - 1)


def _around(place: Array, draw: Array, side: Array, length: int) -> Array:
  """As `_coordinates`, for a window that holds `place`, anywhere in it."""
  offset = place - jnp.floor(draw * side).astype(jnp.int32)
  return jnp.arange(length) - jnp.clip(offset, 0, length - side)


def _window(rows: Array, columns: Array, side: Array) -> Array:
  inside = [(place >= 0) & (place < side) for place in (rows, columns)]
  return inside[0][:, None, None] & inside[1][None, :, None]


def _signs(draw: Array) -> Array:
  return jnp.where(draw < 0.5, -1.0, 1.0)[None, None, :]


def _per_channel(values: Array) -> Array:
  return jnp.sum(values, axis=(0, 1), keepdims=True)


def _divide(values, size: Array) -> Array:
  """`values / size`; zero where the size is."""
  return jnp.where(size > 0, values / jnp.where(size > 0, size, 1.0), 0.0)
