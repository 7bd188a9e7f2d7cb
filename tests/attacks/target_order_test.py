"""MALT: which classes attacks aim at first, and what that finds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import attacks, balls, criteria, engine, losses, norms
from jaxadv.attacks import target_order
from tests import victims

_PAIR = {
  "loss_fn": losses.difference,
  "criterion": criteria.misclassified_pair,
}
# From the centre: class 1 is likelier, class 2 is nearer, class 3 has no slope.
_W = np.zeros((6, 4), np.float32)
_W[0, 1], _W[1, 2], _W[2, 2] = 1.0, 9.0, 2.0
_B = np.asarray([0.4, 0.3, 0.1, 0.35], np.float32)
_X = np.full((3, 6), 0.5, np.float32)
_LABEL = np.zeros(3, np.int32)
_KEYS = jax.random.split(jax.random.key(0), 3)


def _linear(w, b, keys, x):
  del keys
  return (x - 0.5) @ w + b[None]


_LOGITS_FN = jax.tree_util.Partial(_linear, _W, _B)


def _targets(order, rows=(True, True, True)):
  outputs = _LOGITS_FN(_KEYS, jnp.asarray(_X))
  rows = jnp.asarray(rows)
  return np.asarray(
    order(rows, _LOGITS_FN, _KEYS, jnp.asarray(_X), outputs, _LABEL)
  )


@pytest.mark.parametrize("norm", [norms.Linf, norms.L2, norms.L1])
def test_the_nearest_linearised_boundaries_come_first(norm):
  likely = _targets(attacks.LikeliestTargets(3))
  np.testing.assert_array_equal(likely, [[3, 1, 2]] * 3)
  near = _targets(attacks.NearestTargets(3, norm))
  np.testing.assert_array_equal(near, [[2, 1, 3]] * 3)


def test_the_order_is_that_of_the_dual_norm():
  w = np.zeros((6, 3), np.float32)
  w[0, 1] = 2.0  # Nearer in L1: dual norm 2 beside 1.
  w[:, 2] = 1.0  # Nearer in Linf: dual norm 6 beside 2.
  b = np.asarray([0.5, 0.0, 0.0], np.float32)
  logits_fn = jax.tree_util.Partial(_linear, w, b)
  outputs = logits_fn(_KEYS, jnp.asarray(_X))
  for norm, first in ((norms.L1, 1), (norms.Linf, 2), (norms.L2, 2)):
    order = attacks.NearestTargets(1, norm)
    args = (logits_fn, _KEYS, jnp.asarray(_X), outputs, _LABEL)
    found = order(jnp.ones(3, bool), *args)
    np.testing.assert_array_equal(found, [[first]] * 3)


def test_only_the_candidates_are_looked_at():
  near = _targets(attacks.NearestTargets(2, norms.L2, num_candidates=2))
  np.testing.assert_array_equal(near, [[1, 3]] * 3)


def test_one_target_suffices_where_it_is_the_nearest():
  def found(order):
    attack = attacks.multi_targeted(
      attacks.pgd(balls.Linf(0.05), num_steps=5, step_size=0.02, **_PAIR),
      order,
    )
    return victims.logits(
      _LOGITS_FN, engine.run(attack, _LOGITS_FN, jax.random.key(0), _X, _LABEL)
    ).argmax(axis=1)

  np.testing.assert_array_equal(found(1), _LABEL)
  np.testing.assert_array_equal(found(attacks.NearestTargets(1, norms.Linf)), 2)


def test_fab_t_goes_to_the_nearest_after_its_first_move():
  def found(order):
    attack = attacks.fab_t(norms.L1, num_steps=10, num_targets=order)
    x_adv = engine.run(attack, _LOGITS_FN, jax.random.key(0), _X, _LABEL)
    return np.abs(np.asarray(x_adv) - _X).sum(axis=1)

  exact = 0.3 / 9
  assert (
    np.abs(found(attacks.NearestTargets(1, norms.L1)) - exact) < 0.01
  ).all()
  # The likeliest class has no slope at all: nothing is found.
  np.testing.assert_array_equal(found(1), 0.0)


def test_rows_choose_at_their_own_time():
  """Slots are refilled while others are under way: results stay the same."""
  x, label = victims.blobs(12)
  attack = attacks.multi_targeted(
    attacks.pgd(balls.Linf(0.1), num_steps=3, step_size=0.05, **_PAIR),
    attacks.NearestTargets(2, norms.Linf),
  )
  records = [
    engine.craft(
      attack,
      victims.trained(),
      jax.random.key(0),
      x,
      label,
      slots=slots,
      progress=False,
    )
    for slots in (3, 12)
  ]
  np.testing.assert_allclose(records[0].x_adv, records[1].x_adv, atol=1e-6)


def test_refuses_senseless_orders():
  with pytest.raises(ValueError, match="num_targets"):
    attacks.NearestTargets(0, norms.L2)
  with pytest.raises(TypeError, match="norm"):
    attacks.NearestTargets(1, balls.L2(1.0))
  with pytest.raises(ValueError, match="num_candidates"):
    attacks.NearestTargets(3, norms.L2, num_candidates=2)
  assert target_order.of(3) == attacks.LikeliestTargets(3)
