"""Auto-PGD in NumPy: a small network, its gradients by hand, its rules."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxadv import models

SIZE, CLASSES, BATCH = 12, 4, 5
_LENGTH = 410  # At least one step more than the largest budget.


def _net(variables, x):
  hidden = jnp.tanh(x @ variables["first"])
  return hidden @ variables["second"]


@functools.cache
def weights():
  rng = np.random.default_rng(0)
  return {
    "first": rng.normal(size=(SIZE, 8)),
    "second": 2 * rng.normal(size=(8, CLASSES)),
  }


@functools.cache
def examples():
  """Inputs that touch the bounds, each with the class it has."""
  x = np.random.default_rng(1).uniform(-0.3, 1.3, (BATCH, SIZE)).clip(0, 1)
  w = weights()
  return x, (np.tanh(x @ w["first"]) @ w["second"]).argmax(1).astype(np.int32)


def cross_entropy(logits, label):
  """The loss and its gradient in the logits, of one example."""
  shifted = np.exp(logits - logits.max())
  probabilities = shifted / shifted.sum()
  one_hot = np.arange(CLASSES) == label
  return -np.log(probabilities[label]), probabilities - one_hot


def margin(logits, label):
  rival = np.where(np.arange(CLASSES) == label, -np.inf, logits).argmax()
  slope = np.eye(CLASSES)[rival] - np.eye(CLASSES)[label]
  return slope @ logits, slope


def oracle(point, label, loss):
  """The loss at one point and its input gradient, by hand."""
  w = weights()
  hidden = np.tanh(point @ w["first"])
  value, slope = loss(hidden @ w["second"], label)
  return value, w["first"] @ ((1 - hidden**2) * (w["second"] @ slope))


def states(attack, dtype=np.float32):
  """The state after a whole budget and those before its steps [n + 1, B, ...].

  One program for all budgets: what a kernel does past its own is cut off.
  """
  x, y = examples()
  logits_fn = models.bind(
    _net, jax.tree.map(lambda w: jnp.asarray(w, dtype), weights())
  )
  keys = jax.random.split(jax.random.key(0), BATCH)
  start = jnp.asarray(x, dtype), jnp.asarray(y)
  trace = jax.device_get(_trace(attack, logits_fn, keys, *start))
  n = attack.num_steps
  final = jax.tree.map(lambda leaf: leaf[n], trace)
  return final, jax.tree.map(lambda leaf: leaf[:n], trace)


@jax.jit
def init(attack, keys, x, y):
  return attack.init(keys, x, y)


@jax.jit
def step(attack, logits_fn, state):
  return attack.step(logits_fn, state)[0]


@jax.jit
def _trace(attack, logits_fn, keys, x, y):
  def advance(state, _):
    return attack.step(logits_fn, state)[0], state._replace(keys=None)

  return jax.lax.scan(advance, attack.init(keys, x, y), length=_LENGTH)[1]


class LinfRules(NamedTuple):
  eps: float

  def project(self, x, point):
    return x + np.clip(point - x, -self.eps, self.eps)

  def direction(self, grad):
    return np.sign(grad)


class L2Rules(NamedTuple):
  eps: float

  def project(self, x, point):
    length = np.linalg.norm(point - x)
    return x + (point - x) * min(1, self.eps / max(length, 1e-300))

  def direction(self, grad):
    return grad / np.linalg.norm(grad)


def checkpoints(n):
  """The steps at which reference AutoAttack looks at its progress."""
  period, at, found = max(int(0.22 * n), 1), 0, []
  while at + period <= n:
    at += period
    found.append(at)
    period = max(period - max(int(0.03 * n), 1), max(int(0.06 * n), 1))
  return found


class Trace(NamedTuple):
  points: np.ndarray  # [n + 1, D], those at which the model is asked.
  step_sizes: list
  best: np.ndarray
  best_loss: float


def derive(rules, start, x, label, loss, n, rho, first_against=None):
  """Auto-PGD of one example; `first_against` is what the first loss must beat.

  By the paper that is the loss of the start; the reference code compares with
  the last entry of a list of zeros.
  """

  def inside(point):
    return np.clip(rules.project(x, point), 0, 1)

  points, values = [start], []
  step_size, sizes = 2 * rules.eps, []
  value, grad = oracle(start, label, loss)
  best, best_value, best_grad = start, value, grad
  checked, reduced, last = value, True, 0
  values.append(value if first_against is None else first_against)
  point, old = start, start
  for i in range(n):
    a = 0.75 if i else 1.0
    z = inside(point + step_size * rules.direction(grad))
    new = inside(point + a * (z - point) + (1 - a) * (point - old))
    old, point = point, new
    value, grad = oracle(point, label, loss)
    points.append(point)
    values.append(value)
    sizes.append(step_size)
    if value > best_value:
      best, best_value, best_grad = point, value, grad
    if i + 1 in checkpoints(n):
      rises = sum(values[j] > values[j - 1] for j in range(last + 1, i + 2))
      stalled = rises <= rho * (i + 1 - last)
      reduce = stalled or (not reduced and checked >= best_value)
      if reduce:
        step_size /= 2
        point, grad = best, best_grad
      checked, reduced, last = best_value, reduce, i + 1
  return Trace(np.array(points), sizes, best, best_value)
