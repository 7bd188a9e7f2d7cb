"""Spatial attacks on victims that look at one pixel, and their candidates."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import criteria, engine, losses
from jaxadv.attacks import warping
from jaxadv.attacks.spatial import (
  _drawn,
  _on_grid,
  spatial_grid,
  spatial_random,
)
from tests import victims
from tests.attacks import minimum_norm_cases as cases

KEY = cases.KEY
SHAPE = (7, 9, 2)


def _watching(row, column):
  """Class 1 where the pixel is bright in the second channel."""
  w = np.zeros(SHAPE)
  w[row, column, 1] = 1.0
  return victims.binary(w.ravel(), -0.5)


def _lamp(row, column):
  x = np.zeros((1, *SHAPE), np.float32)
  x[0, row, column, 1] = 1.0
  return x


def test_finds_the_one_shift_that_moves_the_lamp_to_the_eye():
  logits_fn, x = _watching(4, 3), _lamp(2, 4)
  for max_shift, num_shifts, found in ((2.0, 5, True), (1.0, 3, False)):
    attack = spatial_grid(
      max_angle=0.0, max_shift=max_shift, num_angles=1, num_shifts=num_shifts
    )
    *_, state = cases.states(attack, logits_fn, x, jnp.zeros(1, int))
    assert bool(state.found[0]) is found
    if found:
      np.testing.assert_array_equal(state.x_adv, _lamp(4, 3))


def test_finds_the_turn_that_moves_the_lamp_to_the_eye():
  # A quarter turn, anticlockwise, takes what is right of the centre above it.
  logits_fn, x = _watching(1, 4), _lamp(3, 6)
  attack = spatial_grid(max_angle=90.0, num_angles=3, num_shifts=1)
  *_, state = cases.states(attack, logits_fn, x, jnp.zeros(1, int))
  assert state.found[0]
  np.testing.assert_allclose(state.x_adv, _lamp(1, 4), atol=1e-5)


def test_the_grid_holds_every_candidate_once_and_the_clean_image_first():
  places = jnp.arange(5 * 3 * 3)
  shares = jax.vmap(lambda i: _on_grid(5, 3, KEY, i))(places)
  axes = [np.linspace(-1, 1, n) for n in (5, 3, 3)]
  np.testing.assert_allclose(
    sorted(map(tuple, np.asarray(shares))), sorted(itertools.product(*axes))
  )
  np.testing.assert_array_equal(shares[0], 0.0)
  alone = jax.vmap(lambda i: _on_grid(1, 1, KEY, i))(jnp.arange(1))
  np.testing.assert_array_equal(alone, 0.0)


def test_the_defaults_are_the_authors_775_queries():
  attack = spatial_grid()
  assert (attack.num_steps, attack.forwards, attack.backwards) == (775, 1, 0)
  # With the clean image.
  assert spatial_random().num_steps == 11


def test_without_success_the_worst_candidate_is_kept():
  rng = np.random.default_rng(0)
  x = rng.uniform(size=(3, *SHAPE)).astype(np.float32)
  logits_fn = victims.linear(rng.normal(size=(x[0].size, 3)), np.zeros(3))
  y = jnp.asarray([0, 1, 2])
  attack = spatial_grid(
    max_angle=20.0, num_angles=3, num_shifts=3, criterion=criteria.never
  )
  worst = np.full(3, -np.inf)
  for angle, down, right in itertools.product(
    (-20.0, 0.0, 20.0), (-3.0, 0.0, 3.0), (-3.0, 0.0, 3.0)
  ):
    moved = jnp.stack(
      [warping.rotate_and_shift(image, angle, down, right) for image in x]
    )
    loss = jax.vmap(losses.cross_entropy)(logits_fn(KEY, moved), y)
    worst = np.maximum(worst, np.asarray(loss))
  *_, state = cases.states(attack, logits_fn, x, y)
  np.testing.assert_allclose(state.best, worst, rtol=1e-4)
  loss = jax.vmap(losses.cross_entropy)(logits_fn(KEY, state.x_adv), y)
  np.testing.assert_allclose(loss, worst, rtol=1e-4)
  assert not state.found.any() and not state.done.any()


def test_what_moves_in_is_the_lower_bound():
  x = np.full((1, *SHAPE), 0.5, np.float32)
  # Wins where anything is dark.
  logits_fn = victims.binary(-np.ones(x[0].size), 0.5 * x[0].size - 0.1)
  attack = spatial_grid(
    max_angle=0.0, max_shift=1.0, num_angles=1, num_shifts=3, bounds=(-2, 2)
  )
  *_, state = cases.states(attack, logits_fn, x, jnp.zeros(1, int))
  assert state.found[0]
  assert set(np.unique(np.asarray(state.x_adv))) == {-2.0, 0.5}


def test_draws_are_each_row_s_and_step_s_own_and_fill_the_limits():
  keys = jax.random.split(KEY, 400)
  shares = np.asarray(jax.vmap(_drawn, (0, None))(keys, 3))
  assert len(np.unique(shares)) > 1000
  assert np.abs(shares).max() <= 1.0
  np.testing.assert_allclose(shares.mean(axis=0), 0.0, atol=0.1)
  np.testing.assert_allclose(shares.var(axis=0), 1 / 3, atol=0.05)
  np.testing.assert_array_equal(_drawn(KEY, 0), 0.0)


def test_random_search_moves_each_row_its_own_way():
  x = np.ones((4, *SHAPE), np.float32)
  attack = spatial_random(num_samples=3, criterion=criteria.never)
  # What moves in is dark, which the victim likes.
  logits_fn = victims.binary(-np.ones(x[0].size) / x[0].size, 0.0)
  x_adv = engine.run(attack, logits_fn, KEY, x, np.zeros(4, np.int32))
  assert len({row.tobytes() for row in np.asarray(x_adv)}) == 4


@pytest.mark.parametrize(
  "attack", [spatial_grid(num_angles=3), spatial_random(num_samples=2)]
)
def test_an_input_that_is_wrong_already_is_its_own_result(attack):
  x = _lamp(4, 3)
  state = next(cases.states(attack, _watching(4, 3), x, jnp.zeros(1, int)))
  assert state.found.all() and state.done.all()
  np.testing.assert_array_equal(state.x_adv, x)


@pytest.mark.parametrize(
  ("make", "words"),
  [
    (lambda: spatial_grid(num_angles=4), "num_angles must be odd"),
    (lambda: spatial_grid(num_shifts=0), "num_shifts must be at least 1"),
    (lambda: spatial_grid(max_angle=-1.0), "max_angle must be >= 0"),
    (lambda: spatial_random(max_shift=-1.0), "max_shift must be >= 0"),
    (lambda: spatial_random(num_samples=0), "num_samples must be at least 1"),
    (lambda: spatial_random(bounds=(1.0, 0.0)), "bounds"),
  ],
)
def test_refuses_senseless_options(make, words):
  with pytest.raises(ValueError, match=words):
    make()


def test_refuses_what_is_no_image():
  logits_fn = victims.binary(np.ones(6), 0.0)
  y = jnp.ones(2, int)
  with pytest.raises(ValueError, match=r"x must hold images \[B, H, W, C\]"):
    engine.run(spatial_random(), logits_fn, KEY, jnp.ones((2, 6)), y)
