"""Norms as values: size, dual, ball and projection belong together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import attacks, balls, norms

NORMS = {"linf": norms.Linf, "l2": norms.L2, "l1": norms.L1}
DELTA = jnp.asarray([3.0, -4.0, 0.0])


@pytest.mark.parametrize(
  ("name", "size", "dual"),
  [("linf", 4.0, 7.0), ("l2", 5.0, 5.0), ("l1", 7.0, 4.0)],
)
def test_size_and_dual(name, size, dual):
  norm = NORMS[name]
  assert float(norm(DELTA)) == pytest.approx(size)
  assert float(norm.dual(DELTA)) == pytest.approx(dual)
  assert float(norm.ball(2.0).norm(DELTA)) == pytest.approx(size)


@pytest.mark.parametrize("name", NORMS)
def test_the_dual_is_the_distance_of_a_hyperplane(name):
  norm = NORMS[name]
  w = jax.random.normal(jax.random.key(0), (5,))
  delta = norm.to_hyperplane(jnp.zeros(5), w, jnp.float32(2.0), (-9.0, 9.0))
  assert float(norm(delta)) == pytest.approx(2.0 / float(norm.dual(w)), 1e-5)


@pytest.mark.parametrize("name", NORMS)
def test_tiny_and_zero_gradients_have_a_dual(name):
  dual = NORMS[name].dual
  assert float(dual(DELTA * 1e-30)) > 0
  assert float(dual(0 * DELTA)) == 0


def test_is_part_of_the_structure_and_equal_to_itself():
  assert jax.tree.leaves(norms.L2) == []
  again = norms.Norm(balls.L2, norms.L2.dual, norms.L2.to_hyperplane)
  assert again == norms.L2
  assert jax.tree.structure(again) == jax.tree.structure(norms.L2)
  np.testing.assert_equal(hash(again), hash(norms.L2))


def test_l0_is_a_size_and_no_norm():
  assert float(norms.L0(jnp.asarray([3.0, -1e-9, 0.0]))) == 2
  with pytest.raises(TypeError, match="norm must be"):
    attacks.deepfool(norms.L0)


def test_l0_is_the_same_function_each_time():
  attack = attacks.fmn_l0()
  once, again = (
    attacks.restarts(attack, 2, size_fn=norms.L0) for _ in range(2)
  )
  assert jax.tree.structure(once) == jax.tree.structure(again)
