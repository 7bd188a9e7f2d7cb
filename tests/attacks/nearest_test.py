"""The least perturbations of linear models, and the nearest of several rounds.

DeepFool and FAB have their own such tests: they look at all classes.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import attacks, criteria, engine, losses, norms
from tests import contract, victims

KEY = jax.random.key(0)
WIDE = (-5.0, 5.0)
PAIR = {
  "loss_fn": losses.difference,
  "criterion": criteria.misclassified_pair,
}

# The size that an attack minimises, the order of the dual norm, the attack.
ATTACKS = {
  "ddn": (norms.L2, 2, lambda **k: attacks.ddn(num_steps=200, **k)),
  "fmn_l2": (
    norms.L2,
    2,
    lambda **k: attacks.fmn(norms.L2, num_steps=100, **k),
  ),
  "fmn_linf": (
    norms.Linf,
    1,
    lambda **k: attacks.fmn(norms.Linf, num_steps=100, **k),
  ),
  "fmn_l1": (
    norms.L1,
    np.inf,
    lambda **k: attacks.fmn(norms.L1, num_steps=200, **k),
  ),
  "alma_l2": (
    norms.L2,
    2,
    lambda **k: attacks.alma(norms.L2, num_steps=500, last_share=1e-3, **k),
  ),
  "pdpgd_linf": (
    norms.Linf,
    1,
    lambda **k: attacks.pdpgd(norms.Linf, num_steps=1000, **k),
  ),
  # Steps along all coordinates add up in L1, so the last ones must be smaller.
  "alma_l1": (
    norms.L1,
    np.inf,
    lambda **k: attacks.alma(norms.L1, num_steps=1000, last_share=1e-4, **k),
  ),
}


def _problem(num_classes):
  rng = np.random.default_rng(0)
  w = rng.normal(size=(12, num_classes))
  b = 0.1 * rng.normal(size=num_classes)
  x = rng.normal(size=(20, 12)).clip(-4, 4).astype(np.float32)
  return w, b, x, np.argmax(x @ w + b, axis=1).astype(np.int32)


def _ratios(name, attack, num_classes):
  """What was found over what is least, of each row."""
  size_fn, dual, _ = ATTACKS[name]
  w, b, x, label = _problem(num_classes)
  logits_fn = victims.linear(w, b)
  x_adv = engine.run(attack, logits_fn, KEY, x, label)
  assert (victims.logits(logits_fn, x_adv).argmax(1) != label).all()
  found = np.asarray(jax.vmap(size_fn)(x_adv - x))
  return found / victims.linear_distance(w, b, x, label, dual)


@pytest.mark.parametrize("name", ATTACKS)
def test_two_classes(name):
  ratios = _ratios(name, ATTACKS[name][2](bounds=WIDE), 2)
  np.testing.assert_allclose(ratios, 1.0, atol=0.01)


@pytest.mark.parametrize("name", ["ddn", "fmn_l2", "fmn_linf", "fmn_l1"])
def test_five_classes_by_aiming_at_each(name):
  size_fn, _, make = ATTACKS[name]
  attack = attacks.multi_targeted(make(bounds=WIDE, **PAIR), 4, size_fn=size_fn)
  np.testing.assert_allclose(_ratios(name, attack, 5), 1.0, atol=0.01)
  # Alone it settles at the boundary of a class that is likelier, but farther;
  # more steps change nothing.
  assert _ratios(name, make(bounds=WIDE), 5).max() > 1.1


def test_l0_of_three_classes_by_aiming_at_each():
  # Each coordinate has 0.5 of room. The second class is the likelier one and
  # takes three coordinates (1 + 0.75 + 0.5 > 2.2); the third takes one.
  w = np.zeros((6, 3))
  w[:3, 1] = 2.0, 1.5, 1.0
  w[3, 2] = 6.0
  b = np.array([0.0, -2.2 - 0.5 * 4.5, -2.6 - 0.5 * 6.0])
  x, label = np.full((2, 6), 0.5, np.float32), np.zeros(2, np.int32)
  logits_fn = victims.linear(w, b)

  def changed(attack):
    x_adv = engine.run(attack, logits_fn, KEY, x, label)
    assert (victims.logits(logits_fn, x_adv).argmax(1) != label).all()
    return np.asarray(jax.vmap(norms.L0)(x_adv - x))

  pair = attacks.fmn_l0(num_steps=60, **PAIR)
  both = attacks.multi_targeted(pair, 2, size_fn=norms.L0)
  np.testing.assert_array_equal(changed(both), 1)
  np.testing.assert_array_equal(changed(attacks.fmn_l0(num_steps=60)), 3)


X, Y = victims.blobs(12)
KEYS = jax.random.split(KEY, 12)


def _pair(r):
  """The labels and the r-th likeliest of the wrong classes."""
  logits = victims.logits(victims.trained(), X)
  logits[np.arange(12), Y] = -np.inf
  return Y, np.argsort(-logits, axis=1)[:, r].astype(np.int32)


def _fmn():
  return attacks.fmn(
    norms.L2,
    num_steps=10,
    **PAIR,
  )


def test_rounds_of_a_minimum_norm_attack_keep_the_nearest_success():
  sizes, rounds = [], []
  for r in range(3):
    y = jax.tree.map(jnp.asarray, _pair(r))
    state = contract.drive(_fmn(), victims.trained(), KEYS, X, y).state
    rounds.append(np.asarray(state.x_adv))
    size = np.asarray(jax.vmap(norms.L2)(state.x_adv - X))
    won = victims.logits(victims.trained(), state.x_adv).argmax(1) != Y
    sizes.append(np.where(won, size, np.inf))
  nearest = np.argmin(sizes, axis=0)
  assert len(np.unique(nearest)) > 1 and np.isfinite(np.min(sizes, 0)).all()
  attack = attacks.multi_targeted(_fmn(), 3, size_fn=norms.L2)
  result = contract.drive(attack, victims.trained(), KEYS, X, Y)
  np.testing.assert_allclose(
    result.state.x_adv, np.stack(rounds)[nearest, np.arange(12)], atol=1e-6
  )
  assert result.state.found.all()
  # No success ends the rounds.
  assert (result.steps == 1 + 3 * (10 + 1)).all()


def test_what_is_won_at_a_distance_of_zero_ends_the_rounds():
  attack = attacks.multi_targeted(_fmn(), 3, size_fn=norms.L2)
  wrong = (Y + 1) % 4
  result = contract.drive(attack, victims.trained(), KEYS, X, wrong)
  assert result.state.found.all() and (result.steps == 1).all()
  np.testing.assert_array_equal(result.state.x_adv, X)


def test_restarts_of_a_minimum_norm_attack_keep_the_nearest():
  deepfool = attacks.deepfool(norms.L2, num_steps=5, num_candidates=4)
  alone = contract.drive(deepfool, victims.trained(), KEYS, X, Y)
  assert alone.state.found.any()
  attack = attacks.restarts(deepfool, 2, size_fn=norms.L2)
  result = contract.drive(attack, victims.trained(), KEYS, X, Y)
  # The rounds are the same: DeepFool draws nothing.
  np.testing.assert_allclose(result.state.x_adv, alone.state.x_adv, atol=1e-6)
  np.testing.assert_array_equal(result.state.found, alone.state.found)
  # Each ends with its success, which one more step confirms.
  assert (result.steps >= 2 * (np.minimum(alone.steps, 5))).all()
