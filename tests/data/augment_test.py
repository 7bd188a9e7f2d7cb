"""Random crops and flips, against all the images they may return."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv.data import augment

_KEY = jax.random.key(0)


def _images(num, height=4, width=5, channels=2):
  shape = (num, height, width, channels)
  return jax.random.uniform(jax.random.key(1), shape, minval=0.1)


def _offsets(image, cropped, padding):
  """All places of the padded `image` at which `cropped` is found."""
  height, width, _ = image.shape
  padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
  return [
    (i, j)
    for i in range(2 * padding + 1)
    for j in range(2 * padding + 1)
    if np.array_equal(padded[i : i + height, j : j + width], cropped)
  ]


def test_crops_are_windows_of_the_padded_image_all_equally_likely():
  num = 900
  image = _images(1)
  images = jnp.tile(image, (num, 1, 1, 1))
  cropped = np.asarray(augment.random_crop(_KEY, images, padding=1))
  image = np.asarray(image[0])
  places = [_offsets(image, crop, 1) for crop in cropped]
  assert all(len(place) == 1 for place in places)
  _, counts = np.unique(places, axis=0, return_counts=True)
  assert len(counts) == 9
  # 100 expected, standard deviation 9.4.
  assert counts.min() > 60 and counts.max() < 140


def test_crop_pads_four_pixels_by_default():
  images = _images(200)
  cropped = np.asarray(augment.random_crop(_KEY, images))
  pairs = zip(np.asarray(images), cropped, strict=True)
  places = np.array([_offsets(image, crop, 4)[0] for image, crop in pairs])
  assert places.min() == 0
  assert places.max() == 8


def test_flips_mirror_about_half_of_the_images():
  images = _images(400)
  flipped = augment.random_flip(_KEY, images)
  same = (flipped == images).all((1, 2, 3))
  mirrored = (flipped == images[:, :, ::-1]).all((1, 2, 3))
  assert bool((same != mirrored).all())
  assert 150 < int(mirrored.sum()) < 250


def test_crop_flip_with_no_padding_is_a_flip():
  images = _images(8)
  result = augment.random_crop_flip(_KEY, images, padding=0)
  same = (result == images).all((1, 2, 3))
  mirrored = (result == images[:, :, ::-1]).all((1, 2, 3))
  assert bool((same | mirrored).all())
  assert bool(same.any()) and bool(mirrored.any())


def test_crop_and_flip_are_independent():
  num = 2_000
  image = _images(1)
  images = jnp.tile(image, (num, 1, 1, 1))
  result = np.asarray(augment.random_crop_flip(_KEY, images, padding=1))
  outcomes = np.unique(result.reshape(num, -1), axis=0, return_counts=True)[1]
  assert len(outcomes) == 18
  # 111 expected, standard deviation 10.2.
  assert outcomes.min() > 65 and outcomes.max() < 160


@pytest.mark.parametrize(
  "augment_fn",
  [augment.random_crop, augment.random_flip, augment.random_crop_flip],
)
def test_contract(augment_fn):
  images = _images(6)
  result = augment_fn(_KEY, images)
  assert result.shape == images.shape
  assert result.dtype == images.dtype
  np.testing.assert_array_equal(result, jax.jit(augment_fn)(_KEY, images))
  np.testing.assert_array_equal(result, augment_fn(_KEY, images))
  # A row is a function of its key and its image alone.
  changed = images.at[1:].set(0.0)
  np.testing.assert_array_equal(result[0], augment_fn(_KEY, changed)[0])
  assert not np.array_equal(result, augment_fn(jax.random.key(2), images))


def test_negative_padding():
  with pytest.raises(ValueError, match="padding=-1: must not be negative"):
    augment.random_crop(_KEY, _images(1), padding=-1)
