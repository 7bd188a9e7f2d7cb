"""ACG against a NumPy re-derivation, step for step, and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import balls, criteria, engine, losses
from jaxadv.attacks import ascent
from jaxadv.attacks.auto_conjugate_gradient import (
  _conjugate,
  _Course,
  auto_conjugate_gradient,
)
from tests import victims
from tests.attacks import auto_pgd_cases as cases


def _beta(grad, old_grad, old_direction):
  change = grad - old_grad
  rate = old_direction @ change
  rounding = 64 * np.finfo(float).eps * np.abs(grad).max()
  if abs(rate) <= rounding * np.linalg.norm(old_direction):
    return 0.0
  return max(0.0, -(grad @ change) / rate)


def _derive(rules, start, x, label, n):
  """ACG of one example; the points, the step sizes, the best and its loss."""

  def inside(point):
    return np.clip(rules.project(x, point), 0, 1)

  value, grad = cases.oracle(start, label, cases.margin)
  old_grad, direction = np.zeros_like(grad), np.zeros_like(grad)
  point, points, values = start, [start], [value]
  best, best_value = (start, grad, old_grad, direction), value
  step_size, sizes, betas = 2 * rules.eps, [], []
  checked, reduced, last = value, True, 0
  for i in range(n):
    betas.append(_beta(grad, old_grad, direction))
    direction = grad + betas[-1] * direction
    point = inside(point + step_size * rules.direction(direction))
    old_grad = grad
    value, grad = cases.oracle(point, label, cases.margin)
    points.append(point)
    values.append(value)
    sizes.append(step_size)
    if value > best_value:
      best, best_value = (point, grad, old_grad, direction), value
    if i + 1 in cases.checkpoints(n):
      rises = sum(values[j] > values[j - 1] for j in range(last + 1, i + 2))
      reduce = rises <= 0.75 * (i + 1 - last)
      reduce |= not reduced and checked >= best_value
      if reduce:
        step_size /= 2
        point, grad, old_grad, direction = best
      checked, reduced, last = best_value, reduce, i + 1
  return np.array(points), sizes, best[0], best_value, betas


@pytest.mark.parametrize(
  ("ball", "rules"),
  [
    (balls.Linf(0.5), cases.LinfRules(0.5)),
    (balls.L2(1.5), cases.L2Rules(1.5)),
  ],
)
def test_every_point_is_the_derived_one(ball, rules):
  n = 60
  attack = auto_conjugate_gradient(ball, num_steps=n, criterion=criteria.never)
  assert attack.num_steps == n + 1
  with jax.enable_x64(True):
    final, trace = cases.states(attack, np.float64)
  x, y = cases.examples()
  halvings, positive = 0, 0
  for row in range(cases.BATCH):
    start = trace.point[0, row]
    points, sizes, best, value, betas = _derive(rules, start, x[row], y[row], n)
    np.testing.assert_allclose(trace.point[:, row], points, atol=1e-8)
    np.testing.assert_array_equal(trace.step_size[1:, row], np.float64(sizes))
    np.testing.assert_allclose(final.x_adv[row], best, atol=1e-8)
    np.testing.assert_allclose(final.best_loss[row], value)
    halvings += len(set(sizes)) - 1
    positive += np.count_nonzero(betas)
  assert halvings > 0 and positive > 20


def test_directions_up_a_hill_are_conjugate():
  # With exact line searches the top of a hill in three dimensions is reached
  # in three steps, each conjugate to those before.
  rng = np.random.default_rng(0)
  root = rng.normal(size=(3, 3))
  curvature = root @ root.T + np.eye(3)
  point = rng.normal(size=3)
  old_grad, direction, directions = np.zeros(3), np.zeros(3), []
  with jax.enable_x64(True):
    for _ in range(3):
      grad = -curvature @ point
      course = _Course(point, grad, old_grad, direction)
      direction = np.asarray(_conjugate(jax.tree.map(jnp.asarray, course)))
      for old in directions:
        assert abs(direction @ curvature @ old) < 1e-9
      directions.append(direction)
      length = grad @ direction / (direction @ curvature @ direction)
      point, old_grad = point + length * direction, grad
  np.testing.assert_allclose(point, 0.0, atol=1e-9)


@pytest.mark.parametrize(
  ("grad", "old_grad", "direction", "expected"),
  [
    # beta by hand: -(-2 * -4) / (1 * -4) = 2, which undoes the fall back.
    ([-2.0, 3.0], [2.0, 3.0], [1.0, 0.0], [0.0, 1.0]),
    # A quotient of -1 counts as 0.
    ([2.0, 0.0], [1.0, 0.0], [2.0, 0.0], [1.0, 0.0]),
    # No change of the gradient; none along the last direction; overflow.
    ([3.0, -4.0], [3.0, -4.0], [0.6, 0.8], [0.6, -0.8]),
    ([3.0, -4.0], [2.0, -4.0], [0.0, 1.0], [0.6, -0.8]),
    ([3e30, -4e30], [0.0, 0.0], [0.6, 0.8], [0.6, -0.8]),
    ([0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]),
  ],
)
def test_directions_by_hand(grad, old_grad, direction, expected):
  course = [jnp.asarray(v) for v in (grad, grad, old_grad, direction)]
  np.testing.assert_allclose(
    _conjugate(_Course(*course)), expected, rtol=1e-6, atol=1e-6
  )


def test_a_linear_model_is_taken_to_the_corner():
  w = np.random.default_rng(1).normal(size=(6, 3))
  x = np.full((3, 6), 0.5, np.float32)
  logits_fn = victims.linear(w, [5.0, 0.0, -90.0])
  y = np.zeros(3, np.int32)
  attack = auto_conjugate_gradient(
    balls.Linf(0.1), num_steps=5, criterion=criteria.never
  )
  x_adv = engine.run(attack, logits_fn, jax.random.key(0), x, y)
  corner = x + 0.1 * np.sign(w[:, 1] - w[:, 0])[None]
  np.testing.assert_allclose(x_adv, corner, rtol=1e-6)


def test_the_start_is_the_centre_of_what_is_allowed():
  attack = auto_conjugate_gradient(balls.Linf(0.3))
  x = jnp.asarray([[0.0, 0.1, 0.5, 0.9, 1.0]])
  keys = jax.random.split(jax.random.key(0), 1)
  start = attack.init(keys, x, jnp.zeros(1, int)).point
  np.testing.assert_allclose(start, [[0.15, 0.2, 0.5, 0.8, 0.85]], rtol=1e-6)


def test_from_random_starts_it_restarts():
  x, y = cases.examples()
  attack = auto_conjugate_gradient(
    balls.Linf(0.15), num_steps=5, start=ascent.in_ball
  )
  keys = jax.random.split(jax.random.key(0), cases.BATCH)
  first, second = (
    attack.init(keys, jnp.asarray(x, jnp.float32), y).point
    for keys in (keys, keys[::-1])
  )
  assert (first != second).any(axis=1).sum() >= cases.BATCH - 1


def test_targeted_reaches_the_target():
  w = np.random.default_rng(2).normal(size=(cases.SIZE, 3))
  logits_fn = victims.linear(w, np.zeros(3))
  x = np.full((3, cases.SIZE), 0.5, np.float32)
  target = np.arange(3, dtype=np.int32)
  attack = auto_conjugate_gradient(
    balls.Linf(0.4),
    num_steps=10,
    loss_fn=losses.targeted_margin,
    criterion=criteria.classified_as,
  )
  x_adv = engine.run(attack, logits_fn, jax.random.key(0), x, target)
  np.testing.assert_array_equal(
    victims.logits(logits_fn, x_adv).argmax(1), target
  )


@pytest.mark.parametrize(
  ("options", "words"),
  [
    ({"num_steps": 0}, "num_steps must be at least 1"),
    ({"rho": -0.1}, "rho must be >= 0"),
    ({"bounds": (1.0, 0.0)}, "bounds"),
  ],
)
def test_refuses_senseless_options(options, words):
  with pytest.raises(ValueError, match=words):
    auto_conjugate_gradient(balls.Linf(0.1), **options)
