"""APGD-L1 against a NumPy re-derivation of its paper, step for step."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import criteria
from jaxadv.attacks.auto_pgd_l1 import auto_pgd_l1
from tests import victims
from tests.attacks import auto_pgd_cases as cases


def project_l1(delta, low, high, radius):
  """The nearest point of ball and box, by bisection to the last bit."""
  caps = np.where(delta > 0, high, -low)

  def shrink(shift):
    return np.sign(delta) * np.clip(np.abs(delta) - shift, 0, caps)

  if np.abs(shrink(0)).sum() <= radius:
    return shrink(0)
  below, above = 0.0, np.abs(delta).max()
  for _ in range(200):
    middle = (below + above) / 2
    if np.abs(shrink(middle)).sum() > radius:
      below = middle
    else:
      above = middle
  return shrink(above)


def derive_l1(start, x, label, eps, n):
  """APGD-L1 with its schedule of radii, one example."""
  third = math.ceil(0.3 * n)
  points = []
  best = start
  for radius, length in zip(
    (3 * eps, 2 * eps, eps), (third, third, n - 2 * third), strict=True
  ):

    def inside(point, radius=radius):
      return x + project_l1(point - x, -x, 1 - x, radius)

    point = inside(best)
    value, grad = cases.oracle(point, label, cases.cross_entropy)
    best, best_value, best_grad = point, value, grad
    points.append(point)
    support = changed = np.count_nonzero(best - x)
    step_size = radius
    for i in range(length):
      k = max(math.ceil(changed / 1.5), 1)
      chosen = np.abs(grad) >= np.sort(np.abs(grad))[-k]
      point = inside(point + step_size * np.sign(grad) * chosen / chosen.sum())
      value, grad = cases.oracle(point, label, cases.cross_entropy)
      points.append(point)
      if value > best_value:
        best, best_value, best_grad = point, value, grad
      if (i + 1) % max(int(0.04 * length), 1) == 0:
        changed = np.count_nonzero(best - x)
        if changed / support < 0.95:
          step_size, point, grad = radius, best, best_grad
        else:
          step_size = max(step_size / 1.5, radius / 10)
        support = changed
  return np.array(points), best


@pytest.mark.parametrize("n", [5, 13, 100])
def test_every_point_of_l1_is_the_derived_one(n):
  eps = 1.2
  attack = auto_pgd_l1(eps, num_steps=n, criterion=criteria.never)
  # In float32 a tie of two gradients now and then falls the other way.
  with jax.enable_x64(True):
    final, trace = cases.states(attack, np.float64)
  x, y = cases.examples()
  for row in range(cases.BATCH):
    start = trace.point[0, row].astype(np.float64)
    points, best = derive_l1(start, x[row], y[row], eps, n)
    assert len(points) == attack.num_steps
    np.testing.assert_allclose(trace.point[:, row], points, atol=5e-5)
    np.testing.assert_allclose(final.x_adv[row], best, atol=5e-5)


@pytest.mark.parametrize(
  ("n", "lengths"),
  [
    (100, [30, 30, 40]),
    (13, [4, 4, 5]),
    (4, [2, 2, 0]),
    (2, [1, 1, 0]),
    (1, [1, 0, 0]),
  ],
)
def test_stages_of_l1(n, lengths):
  attack = auto_pgd_l1(1.0, num_steps=n, criterion=criteria.never)
  _, trace = cases.states(attack)
  counts = [int(np.sum(trace.stage[:, 0] == stage)) for stage in range(3)]
  assert counts == [length + 1 for length in lengths]
  x, _ = cases.examples()
  sizes = np.abs(trace.point - x[None]).sum(-1)
  assert (sizes <= (3 - trace.stage) * (1 + 1e-5)).all()
  # A result is never a point of a larger radius.
  np.testing.assert_allclose(
    trace.x_adv[trace.stage < 2],
    np.float32(np.broadcast_to(x, trace.x_adv.shape)[trace.stage < 2]),
  )


def test_l1_starts_from_projected_noise():
  attack = auto_pgd_l1(1.0)
  keys = jax.random.split(jax.random.key(0), 8)
  x = jnp.full((8, 50), 0.3)
  start = cases.init(attack, keys, x, jnp.zeros(8, jnp.int32))
  np.testing.assert_allclose(jnp.abs(start.point - x).sum(1), 3.0, rtol=1e-5)
  np.testing.assert_allclose(start.step_size, 3.0)
  np.testing.assert_array_equal(start.support, (start.point != x).sum(1))
  assert (start.support < 50).all()


@pytest.mark.parametrize(
  ("before", "after", "sparser"),
  [(20, 19, False), (19, 18, True), (20, 18, True), (10, 10, False)],
)
def test_a_sparser_best_point_restores_the_step(before, after, sparser):
  attack = auto_pgd_l1(1.0, criterion=criteria.never)
  x = np.full((1, 24), 0.5, np.float32)
  best = x + 0.01 * (np.arange(24) < after)
  y = jnp.zeros(1, jnp.int32)
  keys = jax.random.split(jax.random.key(0), 1)
  state = cases.init(attack, keys, x, y)
  state = state._replace(
    age=state.age + 1,
    best=jnp.asarray(best),
    best_loss=jnp.full(1, jnp.inf),
    support=jnp.full(1, before),
  )
  logits_fn = victims.linear(np.eye(24)[:, :2], np.zeros(2))
  after_step = cases.step(attack, logits_fn, state)
  np.testing.assert_allclose(after_step.step_size, 3.0 if sparser else 2.0)
  np.testing.assert_array_equal(after_step.support, after)
