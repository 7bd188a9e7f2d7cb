"""The step of a Brendel-Bethge attack: a small convex problem.

For ONE example, seen from the current point: the `delta` that comes nearest to
the clean input, `away` from the point, in L2 or Linf, with

  sum(normal * delta) = gap,   ||delta||_2 <= radius,
  low <= delta <= high,        low <= 0 <= high.

Whatever the norm, such a delta has the form `clip(base + tau * normal, lower,
upper)`, and its length grows the nearer it comes to the input. So all of it is
one search along a path, each point of which takes one search for tau:

  -1 ... 0   towards the boundary: delta of least length that makes up a growing
             share of the gap
   0 ... 1   along the boundary: towards the input. In L2 the base is a growing
             share of `away`; in Linf the cube around the input, to which delta
             is bound, shrinks.

The farthest point of the path whose length is within the radius is the
solution; where the boundary is out of reach, the way ends before 0, as near to
it as the radius allows. The reference solves the dual problems by L-BFGS.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxadv import norms, numerics, types

Array = jax.Array

# Halvings of the path: at the end it is known to 2^-13.
_HALVINGS = 14
# The search for tau: halvings of its logarithm's range, then Newton's steps.
_TAU_RANGE, _TAU_HALVINGS, _TAU_STEPS = 24.0, 10, 3


class Geometry(NamedTuple):
  """What depends on the norm.

  Attributes:
    between: `(x, start, share, width) -> point`: the way from x (share 0) to
      `start` (share 1) on which every point is the nearest to x of its share.
    slide: `(away, share, radius) -> (base, reach)`: the base of delta and how
      far, in each coordinate, it may end from the input, at a share of the way
      towards it.
  """

  between: Callable[[Array, Array, Array, types.Scalar], Array]
  slide: Callable[[Array, Array, Array], tuple[Array, Array]]


class Task(NamedTuple):
  """The problem of ONE example; see the module."""

  away: Array
  normal: Array
  gap: Array
  radius: Array
  low: Array
  high: Array


def solve(geometry: Geometry, task: Task) -> Array:
  """The step, shaped as `away`."""
  shape, dtype = task.away.shape, task.away.dtype
  task = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), task)
  # XLA:CPU sums over one axis eight times faster than over three.
  task = jax.tree.map(jnp.ravel, task)._replace(
    gap=task.gap, radius=task.radius
  )
  scale = norms.L2(task.normal)
  unit = numerics.unit_l2(task.normal)
  gap = task.gap / jnp.where(scale > 0, scale, 1.0)
  # No more of the gap than the box lets one make up.
  gap = jnp.clip(jnp.nan_to_num(gap), *_extremes(unit, task.low, task.high))
  # Where no boundary is known there is nowhere to go.
  radius = jnp.where(scale > 0, task.radius, 0.0)
  task = task._replace(normal=unit, gap=gap, radius=radius)

  def halve(_, ends):
    near, far = ends
    middle = 0.5 * (near + far)
    delta, reached = _at(geometry, task, middle)
    inside = reached & (norms.L2(delta) <= task.radius)
    return jnp.where(inside, middle, near), jnp.where(inside, far, middle)

  start = -jnp.ones((), unit.dtype), jnp.ones((), unit.dtype)
  place = jax.lax.fori_loop(0, _HALVINGS, halve, start)[0]
  return jnp.reshape(_at(geometry, task, place)[0], shape)


def _at(geometry, task: Task, place: Array) -> tuple[Array, Array]:
  """The delta at a place of the path; False where there is none."""
  share = jnp.maximum(place, 0.0)
  gap = task.gap * jnp.minimum(1.0 + place, 1.0)
  base, reach = geometry.slide(task.away, share, task.radius)
  lower = jnp.maximum(task.low, task.away - reach)
  upper = jnp.minimum(task.high, task.away + reach)
  least, most = _extremes(task.normal, lower, upper)
  reached = (least <= gap) & (gap <= most)
  return _meet(base, task.normal, lower, upper, gap), reached


def _extremes(normal: Array, lower: Array, upper: Array):
  ends = normal * lower, normal * upper
  return jnp.sum(jnp.minimum(*ends)), jnp.sum(jnp.maximum(*ends))


def _meet(base, normal, lower, upper, gap) -> Array:
  """`clip(base + tau * normal, lower, upper)` on the hyperplane.

  The product with the normal, of length 1, rises with tau by less than tau
  does: so tau is at least what is missing, and is looked for above it.
  """

  def at(tau):
    raw = base + tau * normal
    delta = jnp.clip(raw, lower, upper)
    return delta, gap - jnp.sum(normal * delta), raw == delta

  missing = at(0.0)[1]

  def halve(_, ends):
    low, high = ends
    middle = 0.5 * (low + high)
    short = at(missing * 2**middle)[1] * missing > 0
    return jnp.where(short, middle, low), jnp.where(short, high, middle)

  ends = jnp.zeros_like(gap), jnp.full_like(gap, _TAU_RANGE)
  low, high = jax.lax.fori_loop(0, _TAU_HALVINGS, halve, ends)

  def newton(_, factor):
    _, rest, free = at(missing * factor)
    slope = jnp.sum(jnp.where(free, jnp.square(normal), 0.0)) * missing
    step = rest / jnp.where(slope == 0, jnp.inf, slope)
    return jnp.clip(factor + step, 2**low, 2**high)

  factor = jax.lax.fori_loop(0, _TAU_STEPS, newton, 2**low)
  return at(missing * factor)[0]


def _between_l2(x, start, share, width) -> Array:
  del width
  return x + share * (start - x)


def _between_linf(x, start, share, width) -> Array:
  return x + jnp.clip(start - x, -share * width, share * width)


def _slide_l2(away, share, radius) -> tuple[Array, Array]:
  del radius
  # The square keeps short steps, from far away, as exact as long ones.
  return jnp.square(share) * away, jnp.full_like(share, jnp.inf)


def _slide_linf(away, share, radius) -> tuple[Array, Array]:
  # No step changes the Linf distance by more than the radius.
  reach = norms.Linf(away) + radius * (1.0 - 2.0 * share)
  return jnp.zeros_like(away), jnp.maximum(reach, 0.0)


_GEOMETRIES = {
  norms.L2: Geometry(_between_l2, _slide_l2),
  norms.Linf: Geometry(_between_linf, _slide_linf),
}


def geometry(norm: norms.Norm) -> Geometry:
  """That of `norms.L2` or `norms.Linf`.

  Raises:
    ValueError: another norm.
  """
  if norm not in _GEOMETRIES:
    raise ValueError(f"norm must be norms.L2 or norms.Linf, got norm={norm!r}")
  return _GEOMETRIES[norm]
