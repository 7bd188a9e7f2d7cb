"""Where Square Attack starts and what it tries next: one example, each norm.

`moves(ball)` looks both up by the type of the ball; a ball of your own takes
part with `moves.register(MyBall, ...)`. Sizes of windows vary from example to
example, so windows are masks over index grids and all shapes are fixed. A
proposal draws `channels` random signs and a few offsets, not noise per pixel.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxadv import balls, numerics
from jaxadv.attacks import bumps

Array = jax.Array

# Rows and columns, counted from the first of a window.
_Places = tuple[Array, Array]

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


def tiles_l2(ball, key: Array, low: Array, high: Array) -> Array:
  """A grid of bumps with random signs, of norm eps."""
  direction = numerics.unit_l2(bumps.grid(bumps.L2, key, low))
  delta = ball.eps * (1 - _SLACK) * direction
  return jnp.clip(delta, low, high)


def tiles_l1(ball, key: Array, low: Array, high: Array) -> Array:
  """A grid of bumps with random signs, each as large as the bounds are wide."""
  delta = (high - low) * bumps.grid(bumps.L1, key, low)
  return ball.project_box(delta, low, high)


def exchange_l2(ball, key: Array, delta, share, low, high) -> Array:
  """Moves the L2 norm of one window, and what eps leaves, into another."""
  delta = _exchange(bumps.L2, 1, _anywhere, ball.eps, key, delta, share)
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
  delta = _exchange(bumps.L1, channels, place, ball.eps, key, delta, share)
  # One channel stays inside the ball: a projection would only take time.
  if channels == 1:
    return jnp.clip(delta, low, high)
  return ball.project_box(delta, low, high)


def _exchange(norm, gain, place_source, eps, key, delta, share) -> Array:
  height, width, channels = delta.shape
  side = side_odd(share, height, width)
  draw = jax.random.uniform(key, (7 + channels,))
  mass = norm.mass(delta)
  rows = _coordinates(draw[0], side, height)
  columns = _coordinates(draw[1], side, width)
  target = _window(rows, columns, side)
  places = place_source(draw[2:4], draw[-2:], mass, side)
  source = _window(places[0], places[1], side)
  old = jnp.where(target, delta, 0.0)
  old_size = norm.root(_per_channel(jnp.where(target, mass, 0.0)))
  bump = jnp.where(
    target, bumps.bump(norm, rows, columns, side, draw[4] < 0.5), 0.0
  )
  new = bump * _signs(draw[5:-2]) + bumps.divide(old, old_size)
  new_size = norm.root(_per_channel(norm.mass(new)))
  freed = _per_channel(jnp.where(target | source, mass, 0.0))
  left = norm.mass(jnp.asarray(eps * (1 - _SLACK))) - jnp.sum(mass)
  size = gain * norm.root(jnp.maximum(left / channels + freed, 0.0))
  kept = jnp.where(source, 0.0, delta)
  return jnp.where(target, bumps.divide(new, new_size) * size, kept)


def _anywhere(draw: Array, within: Array, mass: Array, side: Array) -> _Places:
  """Of a random window."""
  del within
  height, width, _ = mass.shape
  return (
    _coordinates(draw[0], side, height),
    _coordinates(draw[1], side, width),
  )


def _by_mass(draw: Array, within: Array, mass: Array, side: Array) -> _Places:
  """Of a window around a pixel that is drawn in proportion to its mass."""
  pixels = jnp.sum(mass, axis=-1)
  row = _index(draw[0], jnp.sum(pixels, axis=1))
  column = _index(draw[1], pixels[row])
  return (
    _around(row, within[0], side, len(pixels)),
    _around(column, within[1], side, len(pixels[0])),
  )


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
