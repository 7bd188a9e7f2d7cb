"""PGD on the Jitter loss: fresh noise in each step, and nothing else new."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import attacks, balls, criteria, engine, losses, oracles
from jaxadv.attacks.jitter import jitter_pgd, noisy_loss
from tests import victims

KEY = jax.random.key(0)
SIZE, CLASSES = 8, 4


def _problem():
  rng = np.random.default_rng(0)
  logits_fn = victims.linear(
    rng.normal(size=(SIZE, CLASSES)), np.zeros(CLASSES)
  )
  x = rng.uniform(0.3, 0.7, size=(5, SIZE)).astype(np.float32)
  return logits_fn, x, victims.logits(logits_fn, x).argmax(1).astype(np.int32)


def test_each_step_climbs_the_loss_with_noise_of_its_own():
  logits_fn, x, y = _problem()
  attack = jitter_pgd(
    balls.L2(10.0),
    num_steps=4,
    step_size=0.01,
    start=attacks.at_input,
    criterion=criteria.never,
  )
  loss_fn = losses.jitter()
  state = attack.init(jax.random.split(KEY, len(x)), jnp.asarray(x), y)
  seen, step = [], jax.jit(attack.step)
  for _ in range(4):
    after = step(logits_fn, state)
    label, keys = after.y
    np.testing.assert_array_equal(label, y)
    seen.append(np.asarray(jax.random.key_data(keys)))
    answer = oracles.loss_and_gradient(
      logits_fn, loss_fn, keys, state.x_adv, (label, keys)
    )
    climbed = (after.x_adv - state.x_adv) / 0.01
    unit = jax.vmap(balls.L2(1.0).steepest)(answer.grad)
    np.testing.assert_allclose(climbed, unit, atol=1e-3)
    state = after
  # No key is used twice, in any row or step, nor by the model.
  drawn = {tuple(key) for step in seen for key in step}
  assert len(drawn) == 4 * len(x)
  model = jax.random.key_data(oracles.step_keys(state.keys, state.step - 1))
  assert not drawn & {tuple(key) for key in np.asarray(model)}


def test_without_noise_two_classes_leave_pgd_as_it_is():
  # The loss sees ratios of logits: the label's is 30, the other's below.
  w = np.stack([np.zeros(SIZE), np.arange(1.0, SIZE + 1)], axis=1)
  logits_fn = victims.linear(w, [30.0, 0.0])
  x = np.full((2, SIZE), 0.5, np.float32)
  y = np.zeros(2, np.int32)
  same = {"num_steps": 5, "step_size": 0.02}
  plain = attacks.pgd(balls.Linf(0.15), criterion=criteria.never, **same)
  jitter = jitter_pgd(
    balls.Linf(0.15), noise=0.0, criterion=criteria.never, **same
  )
  np.testing.assert_array_equal(
    engine.run(jitter, logits_fn, KEY, x, y),
    engine.run(plain, logits_fn, KEY, x, y),
  )


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_noise_spreads_the_steps(noise):
  logits_fn, x, y = _problem()
  x, y = np.repeat(x[:1], 64, axis=0), np.repeat(y[:1], 64)
  attack = jitter_pgd(
    balls.L2(0.1),
    num_steps=1,
    step_size=0.1,
    noise=noise,
    start=attacks.at_input,
    criterion=criteria.never,
  )
  x_adv = engine.run(attack, logits_fn, KEY, x, y)
  directions = len(np.unique(np.asarray(x_adv), axis=0))
  assert directions == 1 if noise == 0 else directions > 32


def test_stops_at_success_as_the_label_says_it():
  logits_fn, x, y = _problem()
  attack = jitter_pgd(balls.Linf(0.5), num_steps=20, step_size=0.1)
  x_adv = engine.run(attack, logits_fn, KEY, x, y)
  assert (victims.logits(logits_fn, x_adv).argmax(1) != y).all()


def test_composes_with_auto_pgd_and_with_rounds():
  logits_fn, x, y = _problem()
  attack = noisy_loss(
    attacks.auto_pgd(
      balls.Linf(0.3),
      num_steps=5,
      loss_fn=losses.jitter(),
      criterion=criteria.misclassified_pair,
    )
  )
  x_adv = engine.run(attacks.restarts(attack, 2), logits_fn, KEY, x, y)
  assert (victims.logits(logits_fn, x_adv).argmax(1) != y).all()


def test_built_twice_it_is_the_same_program():
  same = jax.tree.structure
  assert same(jitter_pgd(balls.Linf(0.1), step_size=0.1)) == same(
    jitter_pgd(balls.Linf(0.2), step_size=0.2)
  )


@pytest.mark.parametrize(
  ("options", "words"),
  [
    ({"num_steps": 0}, "num_steps must be at least 1"),
    ({"scale": 0.0}, "scale must be > 0"),
    ({"noise": -1.0}, "noise must be >= 0"),
    ({"step_size": -1.0}, "step_size must be >= 0"),
  ],
)
def test_refuses_senseless_options(options, words):
  with pytest.raises(ValueError, match=words):
    jitter_pgd(balls.Linf(0.1), **({"step_size": 0.1} | options))
