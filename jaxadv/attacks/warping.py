"""Images read between their pixels, by bilinear interpolation.

Coordinates are in pixels, rows from the top and columns from the left; pixel
(0, 0) has its centre there. All functions are for ONE image [H, W, C] and can
be differentiated in the coordinates, on the pixels from one side.
"""

import jax
import jax.numpy as jnp

from jaxadv import types

Array = jax.Array


def read(image: Array, rows: Array, columns: Array) -> Array:
  """The image at the coordinates [...], beyond its edges as at them.

  Coordinates that are whole numbers give the pixels themselves, to the bit.
  """
  height, width, _ = image.shape
  top, bottom, down = _neighbours(rows, height)
  left, right, along = _neighbours(columns, width)
  upper = (1 - along) * image[top, left] + along * image[top, right]
  lower = (1 - along) * image[bottom, left] + along * image[bottom, right]
  return ((1 - down) * upper + down * lower).astype(image.dtype)


def _neighbours(coordinate: Array, size: int) -> tuple[Array, Array, Array]:
  """The pixels on either side, and the weight of the second."""
  last = size - 1
  # Not `clip`, which halves the gradient at the edges themselves.
  inside = jnp.where(coordinate < 0, 0.0, coordinate)
  inside = jnp.where(inside > last, float(last), inside)
  # The last pixel is read as the second of its pair, so the gradient there is
  # that of the image and not of its continuation.
  first = jnp.clip(jnp.floor(inside).astype(jnp.int32), 0, max(last - 1, 0))
  second = jnp.minimum(first + 1, last)
  return first, second, (inside - first)[..., None]


def pixels(image: Array) -> tuple[Array, Array]:
  """The coordinates of the pixels of an image [H, W, C], each [H, W]."""
  height, width, _ = image.shape
  rows, columns = jnp.meshgrid(
    jnp.arange(height, dtype=jnp.float32),
    jnp.arange(width, dtype=jnp.float32),
    indexing="ij",
  )
  return rows, columns


def rotate_and_shift(
  image: Array,
  angle: Array,
  down: Array,
  right: Array,
  fill: types.Scalar = 0.0,
) -> Array:
  """The image turned about its centre, then moved.

  Args:
    image: [H, W, C].
    angle: In degrees, anticlockwise.
    down: By how many pixels the image moves down.
    right: By how many pixels it moves to the right.
    fill: What is seen where the image has gone; towards it the outermost
      pixels fade within one pixel.
  """
  height, width, _ = image.shape
  rows, columns = pixels(image)
  y = rows - down - (height - 1) / 2
  x = columns - right - (width - 1) / 2
  cosine, sine = jnp.cos(jnp.radians(angle)), jnp.sin(jnp.radians(angle))
  # Each pixel is read where the inverse motion takes it, in a frame of `fill`.
  framed = jnp.pad(image, ((1, 1), (1, 1), (0, 0)), constant_values=fill)
  return read(
    framed,
    cosine * y + sine * x + (height - 1) / 2 + 1,
    cosine * x - sine * y + (width - 1) / 2 + 1,
  )


def flow(image: Array, offsets: Array) -> Array:
  """The image whose pixel p shows what the old one shows at `p + offsets[p]`.

  `offsets` [H, W, 2] are in pixels, down and to the right.
  """
  rows, columns = pixels(image)
  return read(image, rows + offsets[..., 0], columns + offsets[..., 1])
