"""Square Attack: its schedule, and what it does to known models."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import attacks, balls, criteria, engine, evaluation, losses
from tests import victims

# The package's attribute of this name is the factory.
square = importlib.import_module("jaxadv.attacks.square")

KINDS = [balls.Linf(0.3), balls.L2(1.5), balls.L1(4.0)]
KEY = jax.random.key(0)
# Optimised code would take longer to make than all tests to run.
quickly = functools.partial(
  jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)


def name(value):
  return type(value).__name__ if not isinstance(value, tuple) else str(value)


def images(shape, rows=4, seed=0):
  rng = np.random.default_rng(seed)
  x = np.clip(rng.uniform(-0.3, 1.3, (rows, *shape)), 0, 1)
  return jnp.asarray(x, jnp.float32)


def run(attack, logits_fn, x, y):
  """Every state from the first to the last, `done` or not."""
  return _run(attack, logits_fn, x, y, length=attack.num_steps)


@functools.partial(quickly, static_argnames="length")
def _run(attack, logits_fn, x, y, *, length):
  def advance(state, _):
    state, _ = attack.step(logits_fn, state)
    return state, state

  start = attack.init(jax.random.split(KEY, len(x)), x, y)
  return jax.lax.scan(advance, start, length=length)[1]


@pytest.mark.parametrize("horizon", [10_000, 500])
def test_share_follows_the_schedule(horizon):
  breaks = np.array([10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000])
  for count in [0, 1, 10, 11, 50, 51, 500, 501, 4999, 8001, 20_000]:
    halvings = (count * 10_000 / horizon > breaks).sum()
    share = square.window_share(jnp.asarray(count), 0.8, horizon)
    np.testing.assert_allclose(share, 0.8 / 2**halvings, rtol=1e-6)


@pytest.mark.parametrize("ball", KINDS, ids=name)
def test_loss_of_the_best_never_falls_and_is_that_of_x_adv(ball):
  logits_fn = victims.ordinary(64, 4)
  x = images((8, 8, 1))
  y = jnp.asarray(victims.logits(logits_fn, x).argmax(1), jnp.int32)
  attack = square.square(
    ball, num_queries=25, criterion=criteria.never, horizon=25
  )
  states = run(attack, logits_fn, x, y)
  assert (jnp.diff(states.best, axis=0) >= 0).all()
  assert (states.best[-1] > states.best[0]).all()
  logits = victims.logits(logits_fn, states.x_adv[-1])
  expected = jax.vmap(losses.margin)(jnp.asarray(logits), y)
  np.testing.assert_allclose(states.best[-1], expected, rtol=1e-3, atol=1e-4)
  assert not states.done.any() and (states.step[-1] == 25).all()


def test_equal_loss_and_no_loss_are_no_gain():
  x = images((8, 8, 1))
  for logits_fn in (victims.constant(64, 4), broken):
    y = jnp.asarray(victims.logits(logits_fn, x).argmax(1), jnp.int32)
    states = run(square.square(KINDS[0], num_queries=5), logits_fn, x, y)
    np.testing.assert_array_equal(states.x_adv[-1], states.x_adv[0])
    assert not states.found.any()


@jax.tree_util.Partial
def broken(keys, x):
  del keys
  return jnp.full((len(x), 4), jnp.nan)


@pytest.mark.parametrize(
  ("kind", "dual", "enough"),
  [(balls.Linf, 1, 1.001), (balls.L2, 2, 1.6), (balls.L1, np.inf, 1.4)],
  ids=["Linf", "L2", "L1"],
)
def test_breaks_a_linear_model_where_theory_allows(kind, dual, enough):
  # Linf reaches the corner that is optimal; sums of bumps come near a wave.
  angle = np.linspace(0, 2 * np.pi, 8, endpoint=False) + 0.3
  w = np.repeat(np.sin(angle), 8)
  x = np.full((6, 8, 8, 1), 0.5, np.float32)
  logits_fn = victims.binary(w, -0.3 - 0.5 * w.sum())
  threshold = 0.3 / np.linalg.norm(w, dual)
  for factor, won in [(0.99, False), (enough, True)]:
    ball = kind(factor * threshold)
    attack = square.square(ball, num_queries=1500, horizon=2000)
    states = run(attack, logits_fn, jnp.asarray(x), jnp.zeros(6, jnp.int32))
    assert (states.found.any(axis=0) == won).all()
    assert evaluation.inside(ball, x, states.x_adv[-1]).all()


def test_one_run_tells_success_against_queries():
  x, logits_fn = np.asarray(images((5, 5, 1), rows=6)), victims.ordinary(25, 4)
  y = victims.logits(logits_fn, x).argmax(1).astype(np.int32)
  y[-1] = (y[-1] + 1) % 4
  attack = square.square(balls.Linf(0.1), num_queries=30)
  record = engine.craft(attack, logits_fn, KEY, x, y, slots=6, progress=False)
  assert record.success.any()
  np.testing.assert_array_equal(record.success, record.steps < 30)
  np.testing.assert_array_equal(record.forwards, record.steps)
  assert (record.backwards == 0).all()
  curve = evaluation.success_against_steps(record, 30)
  assert (np.diff(curve) >= 0).all() and curve[-1] == record.success.mean()


def test_means_over_a_randomised_model():
  attack = attacks.eot(
    square.square(KINDS[0], num_queries=3, criterion=criteria.never), 4
  )
  assert (attack.forwards, attack.backwards, attack.num_steps) == (4, 0, 3)
  x, logits_fn = images((5, 5, 1)), victims.stochastic(25, 4)
  states = run(attack, logits_fn, x, jnp.zeros(4, jnp.int32))
  assert (jnp.diff(states.best, axis=0) >= 0).all()


@pytest.mark.parametrize(
  ("options", "error", "words"),
  [
    ({"num_queries": 0}, ValueError, "num_queries"),
    ({"num_queries": 2.5}, TypeError, "num_queries"),
    ({"p_init": 0.0}, ValueError, "p_init"),
    ({"p_init": 1.5}, ValueError, "p_init"),
    ({"horizon": 0}, ValueError, "horizon"),
    ({"bounds": (1.0, 0.0)}, ValueError, "bounds"),
  ],
)
def test_bad_options(options, error, words):
  with pytest.raises(error, match=words):
    square.square(KINDS[0], **options)


def test_bad_balls_and_inputs():
  with pytest.raises(TypeError, match="ball"):
    square.square(0.3)
  attack = square.square(KINDS[0])
  with pytest.raises(ValueError, match=r"images \[B, H, W, C\]"):
    attack.init(jax.random.split(KEY, 2), jnp.zeros((2, 9)), jnp.zeros(2))
