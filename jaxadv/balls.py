"""Perturbation sets: the only place that knows about norms.

Each ball is a frozen pytree for ONE example (`vmap` it over a batch) with the
methods of `types.Ball`. `eps` is a leaf in the units of the input, so 8/255
(0.03137, not 0.031) for images in [0, 1]; a new radius compiles nothing.
"""

import dataclasses
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from jaxadv import numerics, types

Array = jax.Array
Scalar = types.Scalar


def _check_eps(eps: Any) -> None:
  if isinstance(eps, str):
    raise TypeError(
      f"eps must be a number, got eps={eps!r}: write 8 / 255 without quotes"
    )
  # Tracers and the placeholders of tree operations pass unchecked.
  if isinstance(eps, int | float | np.ndarray | np.generic) and not np.all(
    np.asarray(eps) >= 0
  ):
    raise ValueError(f"eps must be a radius >= 0, got eps={eps!r}")


def _check_box(low: Any, high: Any) -> None:
  # Tracers pass unchecked: the drivers check that x is within its bounds.
  for name, end, sign in (("low", low, 1), ("high", high, -1)):
    if isinstance(end, jax.core.Tracer):
      continue
    beyond = np.max(sign * np.asarray(end), initial=0)
    if beyond > 0:
      raise ValueError(
        f"the box must hold the clean input, low <= 0 <= high, but {name} "
        f"reaches {sign * beyond:g}: give inputs that are within their bounds"
      )


def _typed(delta: Array, *numbers: Any) -> list[Array]:
  """The numbers in the type of `delta`, which the answers then have, too."""
  return [jnp.asarray(number, jnp.result_type(delta)) for number in numbers]


@dataclasses.dataclass(frozen=True)
class _Radius:
  """What the balls with a radius of their own share."""

  eps: Scalar

  def __post_init__(self) -> None:
    _check_eps(self.eps)

  def resized(self, eps: Scalar) -> Self:
    """The ball of radius eps; all else stays as it is."""
    return dataclasses.replace(self, eps=eps)


@types.pytree_dataclass
@dataclasses.dataclass(frozen=True)
class Linf(_Radius):
  """Perturbations with `max |delta_i| <= eps`."""

  def project(self, delta: Array) -> Array:
    """Clips every coordinate to [-eps, eps]."""
    (eps,) = _typed(delta, self.eps)
    return jnp.clip(delta, -eps, eps)

  def project_box(self, delta: Array, low: Array, high: Array) -> Array:
    """The exact projection: both sets are boxes."""
    _check_box(low, high)
    return jnp.clip(self.project(delta), *_typed(delta, low, high))

  def steepest(self, grad: Array) -> Array:
    """The sign of the gradient."""
    return jnp.sign(grad)

  def sample(self, key: Array, like: Array) -> Array:
    """Every coordinate uniform in [-eps, eps]."""
    (eps,) = _typed(like, self.eps)
    return eps * jax.random.uniform(key, like.shape, like.dtype, -1.0, 1.0)

  def norm(self, delta: Array) -> Array:
    """The largest magnitude."""
    return jnp.max(jnp.abs(delta))


@types.pytree_dataclass
@dataclasses.dataclass(frozen=True)
class L2(_Radius):
  """Perturbations with `sqrt(sum delta_i^2) <= eps`."""

  def project(self, delta: Array) -> Array:
    """Shrinks `delta` to length eps where it is longer."""
    (eps,) = _typed(delta, self.eps)
    length = self.norm(delta)
    shrunk = eps * numerics.unit_l2(delta)
    return jnp.where(length > eps, shrunk, delta)

  def project_box(self, delta: Array, low: Array, high: Array) -> Array:
    """Projects, then clips: inside both, as in Madry et al. and AutoAttack.

    Clipping towards 0 never lengthens, so the result is feasible; it need not
    be the nearest feasible point.
    """
    _check_box(low, high)
    return jnp.clip(self.project(delta), *_typed(delta, low, high))

  def steepest(self, grad: Array) -> Array:
    """The gradient scaled to length 1; zero stays zero."""
    return numerics.unit_l2(grad)

  def sample(self, key: Array, like: Array) -> Array:
    """Uniform direction, radius eps * u^(1/d)."""
    key_direction, key_radius = jax.random.split(key)
    direction = jax.random.normal(key_direction, like.shape, like.dtype)
    radius = jax.random.uniform(key_radius, (), like.dtype) ** (1 / like.size)
    (eps,) = _typed(like, self.eps)
    return eps * radius * numerics.unit_l2(direction)

  def norm(self, delta: Array) -> Array:
    """The Euclidean length."""
    return jnp.linalg.norm(jnp.ravel(delta))


@types.pytree_dataclass
@dataclasses.dataclass(frozen=True)
class L1(_Radius):
  """Perturbations with `sum |delta_i| <= eps`.

  Attributes:
    eps: The radius.
    top_fraction: The share of coordinates that a steepest step moves. The
      textbook direction moves one coordinate and is nearly harmless; 0.01 is
      the sparsity of Tramer and Boneh (2019) as CleverHans and Foolbox ship it.
  """

  top_fraction: Scalar = 0.01

  def project(self, delta: Array) -> Array:
    """The nearest point by soft thresholding (Duchi et al., 2008)."""
    return self.project_box(delta, -jnp.abs(delta), jnp.abs(delta))

  def project_box(self, delta: Array, low: Array, high: Array) -> Array:
    """The exact projection onto ball and box (Croce and Hein, 2021).

    Soft thresholding after which every coordinate is clipped, with the
    threshold that uses up the radius; rescaling would not be a projection.
    """
    _check_box(low, high)
    eps, low, high = _typed(delta, self.eps, low, high)
    magnitude = jnp.abs(delta)
    caps = jnp.where(delta > 0, high, -low)
    shift = numerics.soft_threshold(magnitude, caps, eps)
    return jnp.sign(delta) * jnp.clip(magnitude - shift, 0.0, caps)

  def steepest(self, grad: Array) -> Array:
    """Equal steps along the coordinates of largest gradient, of norm 1."""
    magnitude = jnp.abs(grad)
    k = jnp.maximum(jnp.ceil(self.top_fraction * grad.size), 1)
    chosen = magnitude >= numerics.kth_largest(magnitude, k)
    direction = jnp.where(chosen, jnp.sign(grad), 0.0)
    return direction / jnp.maximum(jnp.sum(jnp.abs(direction)), 1.0)

  def sample(self, key: Array, like: Array) -> Array:
    """Uniform in the ball: signed exponential gaps, one of them left out."""
    key_gap, key_sign = jax.random.split(key)
    gaps = jax.random.exponential(key_gap, (like.size + 1,), like.dtype)
    sign = jax.random.rademacher(key_sign, (like.size,), like.dtype)
    (eps,) = _typed(like, self.eps)
    point = eps * sign * gaps[:-1] / jnp.sum(gaps)
    return jnp.reshape(point, like.shape)

  def norm(self, delta: Array) -> Array:
    """The sum of magnitudes."""
    return jnp.sum(jnp.abs(delta))


@types.pytree_dataclass
@dataclasses.dataclass(frozen=True)
class L0(_Radius):
  """Perturbations of at most `eps` coordinates, of any size.

  A pixel counts once for each of its channels. The set is a cone and not
  convex: coordinates of equal size are kept from the first on.
  """

  def _largest(self, magnitude: Array) -> Array:
    eps = jnp.floor(self.eps)
    last = numerics.kth_largest(magnitude, eps)
    above, ties = magnitude > last, magnitude == last
    place = jnp.reshape(jnp.cumsum(jnp.ravel(ties)), ties.shape)
    return above | (ties & (place <= eps - jnp.sum(above)))

  def project(self, delta: Array) -> Array:
    """Keeps the coordinates of largest magnitude."""
    return jnp.where(self._largest(jnp.abs(delta)), delta, 0.0)

  def project_box(self, delta: Array, low: Array, high: Array) -> Array:
    """The exact projection: keeps the clipped coordinates that gain most.

    Keeping one lowers the squared distance to `delta` by `c * (2 delta - c)`,
    with `c` what clipping leaves of it.
    """
    _check_box(low, high)
    kept = jnp.clip(delta, *_typed(delta, low, high))
    # The root of the gain: the gain itself of small coordinates is no number.
    gain = jnp.sqrt(jnp.abs(kept)) * jnp.sqrt(jnp.abs(2 * delta - kept))
    return jnp.where(self._largest(gain), kept, 0.0)

  def steepest(self, grad: Array) -> Array:
    """The sign of the gradient on its eps largest coordinates.

    Scaling leaves an L0 norm as it is, so the length of a step is the magnitude
    that it gives these coordinates.
    """
    return jnp.sign(self.project(grad))

  def sample(self, key: Array, like: Array) -> Array:
    """Random coordinates, each uniform in [-1, 1]: the ball has no end."""
    key_place, key_size = jax.random.split(key)
    places = jax.random.uniform(key_place, like.shape)
    sizes = jax.random.uniform(key_size, like.shape, like.dtype, -1.0, 1.0)
    return jnp.where(self._largest(places), sizes, 0.0)

  def norm(self, delta: Array) -> Array:
    """The number of coordinates that are not zero, in float32 at least."""
    dtype = jnp.promote_types(delta.dtype, jnp.float32)
    return jnp.sum(delta != 0).astype(dtype)


@types.pytree_dataclass
@dataclasses.dataclass(frozen=True)
class Masked:
  """Perturbations in `ball` that are zero outside of `mask`.

  Attributes:
    ball: The ball over the allowed coordinates.
    mask: True where an input may change; broadcasts against ONE example, so
      `[H, W, 1]` frees a pixel in all its channels.
  """

  ball: types.Ball
  mask: Array

  def _keep(self, delta: Array) -> Array:
    return jnp.where(jnp.broadcast_to(self.mask, delta.shape), delta, 0.0)

  def project(self, delta: Array) -> Array:
    """Projects what the mask leaves of `delta`."""
    return self.ball.project(self._keep(delta))

  def project_box(self, delta: Array, low: Array, high: Array) -> Array:
    """Projects what the mask leaves of `delta` onto ball and box."""
    return self.ball.project_box(self._keep(delta), low, high)

  def steepest(self, grad: Array) -> Array:
    """The ball's steepest direction among the allowed coordinates."""
    return self.ball.steepest(self._keep(grad))

  def sample(self, key: Array, like: Array) -> Array:
    """The ball's sample, zeroed outside of the mask."""
    return self._keep(self.ball.sample(key, like))

  def norm(self, delta: Array) -> Array:
    """The ball's norm; infinite where a forbidden coordinate moved."""
    outside = jnp.any(delta != self._keep(delta))
    return jnp.where(outside, jnp.inf, self.ball.norm(delta))

  def resized(self, eps: Scalar) -> Self:
    """The mask, and the ball with the radius eps."""
    return dataclasses.replace(self, ball=self.ball.resized(eps))

  @property
  def eps(self) -> Any:
    """The radius of the ball."""
    return self.ball.eps
