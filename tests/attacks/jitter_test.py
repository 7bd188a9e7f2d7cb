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
    after, _ = step(logits_fn, state)
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


def _loss_by_hand(z, label, normal, scale, noise):
  e = np.exp(scale * z / np.abs(z).max())
  one_hot = np.arange(CLASSES) == label
  return np.linalg.norm(e / e.sum() + noise * normal - one_hot)


def _normals(keys, step):
  fresh = oracles.own_keys(keys, jnp.full(len(keys), step))
  draw = jax.vmap(lambda key: jax.random.normal(key, (CLASSES,)))
  return np.asarray(draw(fresh), np.float64)


@pytest.mark.parametrize(("scale", "noise"), [(10.0, 0.1), (3.0, 0.5)])
def test_the_first_step_by_hand(scale, noise):
  """The slope of the paper's formula by central differences in NumPy."""
  rng = np.random.default_rng(0)
  w, x = rng.normal(size=(SIZE, CLASSES)), rng.normal(size=(5, SIZE))
  y, keys = np.arange(5) % CLASSES, jax.random.split(KEY, 5)
  attack = jitter_pgd(
    balls.L2(10.0),
    num_steps=1,
    step_size=1.0,
    scale=scale,
    noise=noise,
    start=attacks.at_input,
    criterion=criteria.never,
    bounds=(-9.0, 9.0),
  )
  state = attack.init(keys, jnp.asarray(x, jnp.float32), jnp.asarray(y))
  state, _ = jax.jit(attack.step)(victims.linear(w, np.zeros(CLASSES)), state)
  for i, normal in enumerate(_normals(keys, 0)):
    change = 1e-6 * np.eye(SIZE)
    up, down = (
      [_loss_by_hand((x[i] + d) @ w, y[i], normal, scale, noise) for d in ends]
      for ends in (change, -change)
    )
    slope = np.subtract(up, down)
    unit = slope / np.linalg.norm(slope)
    np.testing.assert_allclose(state.x_adv[i] - x[i], unit, atol=1e-4)


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


def _random_plane(logits, y):
  return jnp.vdot(logits, jax.random.normal(y[1], logits.shape))


def test_auto_pgd_climbs_with_noise_of_its_own_in_each_step():
  """The first period, by hand: the slope of each step is its noise."""
  eps, keys = 0.2, jax.random.split(KEY, 3)
  attack = noisy_loss(
    attacks.auto_pgd(
      balls.Linf(eps),
      num_steps=20,
      loss_fn=_random_plane,
      criterion=criteria.never,
    )
  )
  x, y = jnp.full((3, CLASSES), 0.5), jnp.array([2, 0, 1])
  state = attack.init(keys, x, y)
  logits_fn = victims.linear(np.eye(CLASSES), np.zeros(CLASSES))
  point = old = np.asarray(state.point)
  best, best_loss = point, np.full(3, -np.inf)
  step = jax.jit(attack.step)
  for k in range(4):
    state, normal = step(logits_fn, state)[0], _normals(keys, k)
    loss = np.sum(normal * point, axis=1)
    best = np.where((loss > best_loss)[:, None], point, best)
    best_loss = np.maximum(loss, best_loss)
    uphill = np.clip(point + 2 * eps * np.sign(normal), 0.5 - eps, 0.5 + eps)
    new = 0.75 if k else 1.0
    moved = point + new * (uphill - point) + (1 - new) * (point - old)
    point, old = np.clip(moved, 0.5 - eps, 0.5 + eps), point
    np.testing.assert_allclose(state.point, point, atol=1e-6)
    np.testing.assert_allclose(state.x_adv, best, atol=1e-6)
  np.testing.assert_array_equal(state.y[0], y)


def _deaf_margin(logits, y):
  return losses.margin(logits, y[0])


def test_a_loss_that_ignores_its_key_leaves_auto_pgd_as_it_is():
  logits_fn = victims.stochastic(SIZE, CLASSES)
  _, x, y = _problem()
  plain = attacks.auto_pgd(balls.Linf(0.1), num_steps=20, loss_fn=losses.margin)
  noisy = noisy_loss(
    attacks.auto_pgd(
      balls.Linf(0.1),
      num_steps=20,
      loss_fn=_deaf_margin,
      criterion=criteria.misclassified_pair,
    )
  )
  np.testing.assert_array_equal(
    engine.run(noisy, logits_fn, KEY, x, y),
    engine.run(plain, logits_fn, KEY, x, y),
  )


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
  x_adv = engine.run(attacks.restarts(attack, 5), logits_fn, KEY, x, y)
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
