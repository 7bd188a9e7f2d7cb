"""Linear problems for minimum-norm attacks, and the states they go through."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tests import victims

KEY = jax.random.key(0)
# Bounds that are nowhere near.
WIDE = (-5.0, 5.0)


def problem(num_classes=3):
  """Weights, biases, inputs all over the place and their classes."""
  rng = np.random.default_rng(0)
  w, b = rng.normal(size=(6, num_classes)), 0.1 * rng.normal(size=num_classes)
  x = rng.normal(size=(5, 6)).astype(np.float32)
  return w, b, x, np.argmax(x @ w + b, axis=1).astype(np.int32)


def in_the_box():
  """A linear model whose boundaries are near the middle of the box."""
  rng = np.random.default_rng(0)
  w = rng.normal(size=(12, 4)).astype(np.float32)
  x = rng.uniform(0.35, 0.65, (8, 12)).astype(np.float32)
  logits_fn = victims.linear(w, -0.5 * w.sum(axis=0))
  label = victims.logits(logits_fn, x).argmax(axis=1).astype(np.int32)
  return logits_fn, x, label


def start(attack, x, y):
  """The state before the first step."""
  keys = jax.random.split(KEY, len(x))
  return attack.init(keys, jnp.asarray(x), jnp.asarray(y))


@functools.partial(jax.jit, static_argnums=4)
def drive(attack, logits_fn, x, y, num_steps):
  """The states after each step [num_steps, B, ...], done or not."""

  def step(state, _):
    state, _ = attack.step(logits_fn, state)
    return state, state

  return jax.lax.scan(step, start(attack, x, y), None, num_steps)[1]


def states(attack, logits_fn, x, y):
  """The states after each step, one by one, until all rows are done."""
  state, step = start(attack, x, y), jax.jit(attack.step)
  for _ in range(attack.num_steps):
    state, _ = step(logits_fn, state)
    yield state
    if state.done.all():
      return
