"""Whom a targeted attack aims at."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import targets


def test_random_is_uniform_over_the_other_classes():
  label = jnp.arange(4000) % 5
  drawn = np.asarray(targets.random(jax.random.key(0), label, 5))
  assert drawn.min() >= 0 and drawn.max() < 5
  shift = (drawn - np.asarray(label)) % 5
  counts = np.bincount(shift, minlength=5)
  assert counts[0] == 0
  assert (abs(counts[1:] - 1000) < 120).all()


def test_random_of_two_classes_is_the_other_one():
  label = jnp.array([0, 1, 1])
  drawn = targets.random(jax.random.key(0), label, 2)
  np.testing.assert_array_equal(drawn, [1, 0, 0])


def test_random_refuses_a_single_class():
  with pytest.raises(ValueError, match="num_classes must be >= 2"):
    targets.random(jax.random.key(0), jnp.zeros(3, int), 1)


_Z = jnp.array([[-3.0, -1.0, -2.0, -9.0], [5.0, 1.0, 2.0, 3.0]])


def test_least_likely():
  np.testing.assert_array_equal(targets.least_likely(_Z), [3, 1])


def test_likeliest_wrong_leaves_the_label_out():
  found = targets.likeliest_wrong(_Z, jnp.array([1, 0]))
  np.testing.assert_array_equal(found, [2, 3])
  found = targets.likeliest_wrong(_Z, jnp.array([0, 3]))
  np.testing.assert_array_equal(found, [1, 0])
