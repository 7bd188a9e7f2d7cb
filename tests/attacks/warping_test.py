"""Images read between their pixels, against shifts and turns done by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv.attacks import warping


def _image(*shape, seed=0):
  return np.random.default_rng(seed).uniform(size=shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(5, 5, 1), (4, 7, 3), (1, 6, 2), (1, 1, 1)])
def test_standing_still_changes_not_a_bit(shape):
  image = _image(*shape)
  np.testing.assert_array_equal(
    warping.rotate_and_shift(image, 0.0, 0.0, 0.0), image
  )
  flow = jnp.zeros((*shape[:2], 2))
  np.testing.assert_array_equal(warping.flow(image, flow), image)


@pytest.mark.parametrize("size", [4, 5])
@pytest.mark.parametrize("turns", [-1, 1, 2, 3])
def test_quarter_turns_are_those_of_an_array(size, turns):
  image = _image(size, size, 3)
  turned = warping.rotate_and_shift(image, 90.0 * turns, 0.0, 0.0)
  np.testing.assert_allclose(turned, np.rot90(image, turns), atol=1e-5)


def test_half_a_turn_of_an_oblong_image():
  image = _image(3, 6, 2)
  turned = warping.rotate_and_shift(image, 180.0, 0.0, 0.0)
  np.testing.assert_allclose(turned, image[::-1, ::-1], atol=1e-5)


@pytest.mark.parametrize(("down", "right"), [(2, -1), (-3, 0), (0, 4), (9, 9)])
def test_whole_pixels_move_exactly_and_leave_the_fill(down, right):
  height, width = 5, 7
  image = _image(height, width, 2)
  expected = np.full_like(image, -1.0)
  for row in range(height):
    for column in range(width):
      if 0 <= row - down < height and 0 <= column - right < width:
        expected[row, column] = image[row - down, column - right]
  moved = warping.rotate_and_shift(image, 0.0, 1.0 * down, 1.0 * right, -1.0)
  np.testing.assert_array_equal(moved, expected)


def test_half_a_pixel_is_the_mean_of_two():
  image = _image(4, 3, 1)
  moved = warping.rotate_and_shift(image, 0.0, 0.5, 0.0)
  above = np.concatenate([np.zeros_like(image[:1]), image[:-1]])
  np.testing.assert_allclose(moved, (image + above) / 2, rtol=1e-6)


def test_the_turn_comes_before_the_shift():
  image = _image(5, 5, 1)
  both = warping.rotate_and_shift(image, 90.0, 1.0, 2.0)
  turned = warping.rotate_and_shift(image, 90.0, 0.0, 0.0)
  expected = warping.rotate_and_shift(turned, 0.0, 1.0, 2.0)
  np.testing.assert_allclose(both, expected, atol=1e-5)


def test_a_flow_looks_where_it_points_and_no_further_than_the_edge():
  image = _image(4, 5, 2)
  flow = np.zeros((4, 5, 2), np.float32)
  flow[1, 2] = (1.0, -2.0)
  flow[0, 0] = (-3.0, 0.25)
  flow[3, 4] = (7.0, 7.0)
  seen = np.asarray(warping.flow(image, flow))
  np.testing.assert_array_equal(seen[1, 2], image[2, 0])
  np.testing.assert_allclose(
    seen[0, 0], 0.75 * image[0, 0] + 0.25 * image[0, 1], rtol=1e-6
  )
  np.testing.assert_array_equal(seen[3, 4], image[3, 4])
  flow[[1, 0, 3], [2, 0, 4]] = 0.0
  assert np.count_nonzero(flow) == 0


def test_the_slope_is_that_of_the_image_up_to_its_edges():
  # A plane: 2 a row, 3 a column.
  rows, columns = np.mgrid[:4, :5].astype(np.float32)
  image = (2 * rows + 3 * columns)[..., None]

  def total(flow):
    return jnp.sum(warping.flow(image, flow))

  slope = jax.grad(total)(jnp.zeros((4, 5, 2)))
  np.testing.assert_allclose(slope[..., 0], 2.0)
  np.testing.assert_allclose(slope[..., 1], 3.0)
  beyond = jax.grad(total)(jnp.full((4, 5, 2), -9.0))
  np.testing.assert_array_equal(beyond, 0.0)


def test_keeps_the_type_of_the_image():
  image = jnp.asarray(_image(3, 3, 1), jnp.bfloat16)
  turned = warping.rotate_and_shift(image, 10.0, 0.0, 0.5)
  assert turned.dtype == jnp.bfloat16
