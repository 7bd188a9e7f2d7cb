"""Several rounds, several targets, several draws: kept, ordered, averaged."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import attacks, balls, criteria, engine, losses, norms, oracles
from tests import contract, victims

_X, _Y = victims.blobs(12)
_KEYS = jax.random.split(jax.random.key(0), 12)
_NEVER = {"criterion": criteria.never}
_PAIR = {
  "loss_fn": losses.targeted_dlr,
  "criterion": criteria.misclassified_pair,
}


def _pgd(eps=0.1, num_steps=2, **parts):
  return attacks.pgd(
    balls.Linf(eps), num_steps=num_steps, step_size=eps / 2, **parts
  )


def _drive(attack, keys=_KEYS, logits_fn=None):
  logits_fn = victims.trained() if logits_fn is None else logits_fn
  return contract.drive(attack, logits_fn, keys, _X, _Y)


def _margins(x_adv):
  logits = victims.trained()(_KEYS, jnp.asarray(x_adv))
  return np.asarray(jax.vmap(losses.margin)(logits, _Y))


def test_restarts_keep_the_best_of_their_rounds():
  pgd = _pgd(**_NEVER)
  rounds = []
  for r in range(3):
    keys = jax.vmap(jax.random.fold_in, (0, None))(_KEYS, r)
    rounds.append(np.asarray(_drive(pgd, keys).state.x_adv))
  margins = np.stack([_margins(x_adv) for x_adv in rounds])
  assert len(np.unique(margins.argmax(axis=0))) > 1
  best = np.stack(rounds)[margins.argmax(axis=0), np.arange(12)]
  result = _drive(attacks.restarts(pgd, 3, criterion=criteria.never))
  np.testing.assert_allclose(result.state.x_adv, best, atol=1e-6)
  # Each round is paid for with its steps and one more to hear its result.
  assert (result.steps == 3 * (2 + 1)).all()


def test_more_restarts_are_never_weaker():
  margins = [
    _margins(
      _drive(
        attacks.restarts(_pgd(**_NEVER), n, criterion=criteria.never)
      ).state.x_adv
    )
    for n in (1, 2, 5)
  ]
  assert (margins[0] <= margins[1] + 1e-6).all()
  assert (margins[1] <= margins[2] + 1e-6).all()
  assert (margins[0] < margins[2] - 1e-4).any()


def test_restarts_stop_at_the_first_success():
  result = _drive(attacks.restarts(_pgd(0.17), 4))
  found = np.asarray(result.state.found)
  assert 0 < found.sum() < 12
  np.testing.assert_array_equal(found, _margins(result.state.x_adv) > 0)
  assert (result.steps[~found] == 4 * 3).all()
  assert (result.steps[found] < 4 * 3).any()


def test_a_success_at_the_very_end_of_a_round_is_seen():
  """PGD does not ask about its last point; the round's confirmation does."""
  attack = attacks.restarts(
    attacks.fgsm(balls.Linf(0.5), loss_fn=losses.margin), 1
  )
  result = _drive(attack)
  assert result.state.found.any()
  np.testing.assert_array_equal(
    result.state.found, _margins(result.state.x_adv) > 0
  )
  assert (result.steps == 2).all()


def test_restarts_do_not_take_the_attack_s_word():
  """The inner attack stops at lower confidence, which is no success."""
  easily_pleased = _pgd(0.17, criterion=criteria.confidence_below(0.9999))
  state = _drive(attacks.restarts(easily_pleased, 3)).state
  assert (_margins(state.x_adv)[np.asarray(state.found)] > 0).all()


def test_the_judge_confirms_restarts():
  record = engine.craft(
    attacks.restarts(_pgd(0.17), 4),
    victims.trained(),
    jax.random.key(0),
    _X,
    _Y,
    slots=8,
    progress=False,
  )
  np.testing.assert_array_equal(record.success, _margins(record.x_adv) > 0)
  assert (record.steps[~record.success] == 12).all()
  np.testing.assert_array_equal(record.forwards, record.steps)


def test_targets_come_in_order_of_the_clean_logits_without_the_label():
  attack = attacks.multi_targeted(_pgd(**_PAIR), 3)
  logits = victims.logits(victims.trained(), _X)
  logits[np.arange(12), _Y] = -np.inf
  expected = np.argsort(-logits, axis=1)[:, :3]
  logits_fn = victims.trained()
  with jax.disable_jit():
    states = [attack.init(_KEYS, jnp.asarray(_X), _Y)]
    for _ in range(9):
      states.append(attack.step(logits_fn, states[-1])[0])
  np.testing.assert_array_equal(states[1].targets, expected)
  lost = ~np.asarray(states[-1].done)
  assert lost.any()
  # The first step chooses; each round takes two steps and a confirmation.
  for step, r in ((1, 0), (3, 0), (4, 1), (6, 1), (7, 2), (9, 2)):
    label, target = states[step].inner.y
    np.testing.assert_array_equal(label, _Y)
    np.testing.assert_array_equal(target[lost], expected[lost, r])


def _pairs(x, r):
  logits = victims.logits(victims.trained(), x)
  logits[np.arange(len(x)), _Y] = -np.inf
  return _Y, np.argsort(-logits, axis=1)[:, r].astype(np.int32)


def test_multi_targeted_keeps_the_best_of_its_rounds():
  never = _PAIR | _NEVER
  rounds = []
  for r in range(2):
    keys = jax.vmap(jax.random.fold_in, (0, None))(_KEYS, r)
    y = jax.tree.map(jnp.asarray, _pairs(_X, r))
    state = contract.drive(_pgd(**never), victims.trained(), keys, _X, y).state
    rounds.append(np.asarray(state.x_adv))
  margins = np.stack([_margins(x_adv) for x_adv in rounds])
  best = np.stack(rounds)[margins.argmax(axis=0), np.arange(12)]
  attack = attacks.multi_targeted(_pgd(**never), 2, criterion=criteria.never)
  result = _drive(attack)
  np.testing.assert_allclose(result.state.x_adv, best, atol=1e-6)
  assert (result.steps == 1 + 2 * (2 + 1)).all()


def _mean_gradient(loss_fn, x, num_samples):
  """The mean of single draws' gradients, each taken on its own."""
  logits_fn = victims.stochastic(25, 4)

  def one(keys, x):
    return oracles.loss_and_gradient(logits_fn, loss_fn, keys, x, _Y).grad

  keys = oracles.step_keys(_KEYS, jnp.zeros(12, jnp.int32))
  grads = [
    one(jax.vmap(jax.random.fold_in, (0, None))(keys, draw), jnp.asarray(x))
    for draw in range(num_samples)
  ]
  return np.mean(grads, axis=0), np.asarray(grads)


def _unit(grads):
  lengths = np.linalg.norm(grads.reshape(len(grads), -1), axis=1)
  return grads / np.maximum(lengths, 1e-9)[:, None, None, None]


@pytest.mark.parametrize("loss_fn", [losses.cross_entropy, losses.dlr])
def test_expectation_climbs_the_mean_gradient_of_its_draws(loss_fn):
  ball = balls.L2(0.3)
  single = attacks.basic_iterative(
    ball, num_steps=1, step_size=0.1, loss_fn=loss_fn, **_NEVER
  )
  x = 0.3 + 0.4 * _X
  mean, each = _mean_gradient(loss_fn, x, 5)
  state = contract.drive(
    attacks.eot(single, 5), victims.stochastic(25, 4), _KEYS, x, _Y
  ).state
  np.testing.assert_allclose(
    (np.asarray(state.x_adv) - x) / 0.1, _unit(mean), atol=1e-5
  )
  # One draw climbs elsewhere.
  assert abs(_unit(each[0]) - _unit(mean)).max() > 1e-3


@pytest.mark.parametrize(
  "attack",
  [
    attacks.deepfool(norms.L2, num_steps=5, num_candidates=4),
    attacks.fab(norms.L2, num_steps=5, num_candidates=4),
  ],
  ids=["deepfool", "fab"],
)
def test_expectation_of_what_is_certain_changes_nothing(attack):
  """Also for attacks that ask for the gradients of all classes."""
  once, often = _drive(attack), _drive(attacks.eot(attack, 2))
  assert once.state.found.any()
  np.testing.assert_array_equal(often.steps, once.steps)
  np.testing.assert_allclose(often.state.x_adv, once.state.x_adv, atol=1e-5)


def test_expectation_costs_its_samples():
  attack = attacks.eot(attacks.eot(_pgd(), 3), 2)
  assert (attack.forwards, attack.backwards) == (6, 6)
  assert attack.num_steps == 2
  asked = victims.asked()
  logits_fn = victims.counted(victims.trained())
  engine.run(
    attacks.eot(_pgd(**_NEVER), 3), logits_fn, jax.random.key(0), _X, _Y
  )
  assert (victims.asked() - asked)["rows"] == 2 * 3 * 12


def _nested():
  pgd, targeted = _pgd(0.17), _pgd(0.17, **_PAIR)
  pair_restarts = functools.partial(
    attacks.restarts,
    loss_fn=losses.targeted_dlr,
    criterion=criteria.misclassified_pair,
  )
  return {
    "restarts-targets": (
      attacks.restarts(attacks.multi_targeted(targeted, 2), 2),
      2 * (1 + 2 * 3 + 1),
    ),
    "targets-restarts": (
      attacks.multi_targeted(pair_restarts(targeted, 2), 2),
      1 + 2 * (2 * 3 + 1),
    ),
    "restarts-eot": (attacks.restarts(attacks.eot(pgd, 2), 2), 2 * 3),
    "eot-restarts": (attacks.eot(attacks.restarts(pgd, 2), 2), 2 * 3),
    "restarts-restarts": (
      attacks.restarts(attacks.restarts(pgd, 2), 2),
      2 * (2 * 3 + 1),
    ),
  }


@pytest.mark.parametrize("name", _nested())
def test_combinators_nest(name):
  attack, num_steps = _nested()[name]
  assert attack.num_steps == num_steps
  result = _drive(attack)
  found = np.asarray(result.state.found)
  assert found.any() and not found.all()
  np.testing.assert_array_equal(found, _margins(result.state.x_adv) > 0)
  assert (result.steps[~found] == num_steps).all()
  moved = abs(np.asarray(result.state.x_adv) - _X).max(axis=(1, 2, 3))
  assert (moved <= 0.17 + 1e-6).all()


@pytest.mark.parametrize(
  ("make", "words"),
  [
    (lambda: attacks.restarts(_pgd(), 0), "num_restarts must be at least 1"),
    (lambda: attacks.multi_targeted(_pgd(), 0), "num_targets must be at least"),
    (lambda: attacks.eot(_pgd(), 0), "num_samples must be at least 1"),
    (
      lambda: _drive(attacks.multi_targeted(_pgd(**_PAIR), 4)),
      "num_targets must be at most 3 for a model of 4 classes",
    ),
  ],
)
def test_refuses_bad_parameters(make, words):
  with pytest.raises(ValueError, match=words):
    make()
