"""Random changes of images on the device: `(key, images) -> images`.

Crops and flips are the augmentation of CIFAR training in K. He, X. Zhang, S.
Ren and J. Sun, "Deep residual learning for image recognition", CVPR 2016,
section 4.2. Each example has its own key. Leave the flip out where it changes
the label, as for digits.
"""

import jax
import jax.numpy as jnp

from jaxadv import checks


def random_crop(
  key: jax.Array, images: jax.Array, *, padding: int = 4
) -> jax.Array:
  """Moves every image by up to `padding` pixels, zeros coming in at the edge.

  Args:
    key: one PRNG key.
    images: `[B, H, W, C]`.
    padding: pixels of zeros added to each side before a crop of H x W is taken
      from a random place; 4 for 32 x 32 pixels in He et al. (2016).

  Raises:
    ValueError: if `padding` is negative.
  """
  if padding < 0:
    raise ValueError(f"padding={padding}: must not be negative")
  edge = (padding, padding)
  padded = jnp.pad(images, ((0, 0), edge, edge, (0, 0)))

  def crop(key, image):
    row, column = jax.random.randint(key, (2,), 0, 2 * padding + 1)
    return jax.lax.dynamic_slice(image, (row, column, 0), images.shape[1:])

  return jax.vmap(crop)(jax.random.split(key, len(images)), padded)


def random_flip(key: jax.Array, images: jax.Array) -> jax.Array:
  """Mirrors every image left to right with probability one half.

  Args:
    key: one PRNG key.
    images: `[B, H, W, C]`.
  """

  def flip(key, image):
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)

  return jax.vmap(flip)(jax.random.split(key, len(images)), images)


def random_crop_flip(
  key: jax.Array, images: jax.Array, *, padding: int = 4
) -> jax.Array:
  """`random_crop`, then `random_flip`, with independent keys."""
  key_crop, key_flip = jax.random.split(key)
  cropped = random_crop(key_crop, images, padding=padding)
  return random_flip(key_flip, cropped)


def gaussian_noise(
  key: jax.Array,
  images: jax.Array,
  *,
  sigma: float,
  bounds: tuple[float, float] | None = (0.0, 1.0),
) -> jax.Array:
  """Adds `sigma * N(0, I)`, then clips.

  Args:
    key: one PRNG key.
    images: `[B, ...]`.
    sigma: standard deviation, in the units of the images.
    bounds: the range of inputs, which attacks rely on; None clips nothing, as
      training for randomised smoothing does (Cohen et al., 2019).

  Raises:
    ValueError: if `sigma` is negative.
  """
  checks.non_negative("sigma", sigma)

  def noise(key, image):
    return sigma * jax.random.normal(key, image.shape, image.dtype)

  keys = jax.random.split(key, len(images))
  noisy = images + jax.vmap(noise)(keys, images)
  return noisy if bounds is None else jnp.clip(noisy, *bounds)
