"""Norms as values: minimum-norm attacks take one, since they have no radius.

  attacks.deepfool(norms.L2)      beside      attacks.pgd(balls.L2(0.5), ...)

A norm holds what such an attack asks about it, all for ONE example (`vmap` it):

  norm(delta)                           the size of a perturbation
  norm.dual(w)                          how fast `sum(w * delta)` can grow with
                                        it: |lead| / dual(w) is the distance of
                                        a linear decision boundary
  norm.ball(eps)                        the ball of that radius, see `balls`
  norm.to_hyperplane(x, w, gap, bounds) the smallest perturbation inside the
                                        bounds with `sum(w * delta) = gap`, see
                                        `projections`

A norm is part of a program's structure: another norm compiles anew. `L0` is a
size and no more.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxadv import balls, numerics, projections, types

Array = jax.Array


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Norm:
  """One of `Linf`, `L2` and `L1`, or one of your own.

  Attributes:
    ball: Makes the ball of a radius.
    dual: The dual norm.
    to_hyperplane: The projection onto hyperplane and box.
  """

  ball: Callable[[types.Scalar], types.Ball]
  dual: Callable[[Array], Array]
  to_hyperplane: Callable[
    [Array, Array, Array, tuple[types.Scalar, types.Scalar]], Array
  ]

  def __call__(self, delta: Array) -> Array:
    """The size of `delta`."""
    return self.ball(0.0).norm(delta)


def L0(delta: Array) -> Array:
  """The number of coordinates that are not zero, as `balls.L0` counts them.

  For `attacks.restarts` and `attacks.multi_targeted`. A ball's bound method is
  another function each time it is asked for, so programs would compile anew.
  """
  return balls.L0(0.0).norm(delta)


def _sum(w: Array) -> Array:
  return jnp.sum(jnp.abs(w))


def _length(w: Array) -> Array:
  # Does not underflow where the squares of tiny gradients would.
  return jnp.sum(w * numerics.unit_l2(w))


def _largest(w: Array) -> Array:
  return jnp.max(jnp.abs(w))


Linf = Norm(balls.Linf, _sum, projections.linf)
L2 = Norm(balls.L2, _length, projections.l2)
L1 = Norm(balls.L1, _largest, projections.l1)
