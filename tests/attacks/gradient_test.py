"""The gradient family on victims where every step is known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import attacks, balls, criteria, losses, oracles
from tests import contract, victims

_RNG = np.random.default_rng(0)
_X = _RNG.uniform(0.45, 0.55, size=(4, 5, 5, 1)).astype(np.float32)
_KEYS = jax.random.split(jax.random.key(0), 4)
_W = _RNG.normal(size=25)
_DUAL = {balls.Linf: 1, balls.L2: 2, balls.L1: np.inf}
_NEVER = {"criterion": criteria.never}


def _drive(attack, logits_fn, y, x=_X):
  state = contract.drive(attack, logits_fn, _KEYS, x, y).state
  return np.asarray(state.x_adv)


_EXACT = {
  "fgsm": lambda ball: attacks.fgsm(ball, **_NEVER),
  "basic_iterative": lambda ball: attacks.basic_iterative(
    ball, num_steps=4, step_size=ball.eps / 4, **_NEVER
  ),
  "pgd": lambda ball: attacks.pgd(
    ball, num_steps=25, step_size=ball.eps / 2, **_NEVER
  ),
  "mi_fgsm": lambda ball: attacks.mi_fgsm(ball, num_steps=4, **_NEVER),
  "ni_fgsm": lambda ball: attacks.ni_fgsm(ball, num_steps=4, **_NEVER),
}


@pytest.mark.parametrize("kind", [balls.Linf, balls.L2, balls.L1])
@pytest.mark.parametrize("name", _EXACT)
def test_a_linear_margin_falls_by_eps_times_the_dual_norm(name, kind):
  eps = 0.2
  victim = victims.binary(_W, 0.0)
  y = jnp.array([0, 1, 0, 1])
  x_adv = _drive(_EXACT[name](kind(eps)), victim, y)
  moved = (x_adv - _X).reshape(4, 25) @ _W
  expected = eps * np.linalg.norm(_W, _DUAL[kind])
  np.testing.assert_allclose(moved, expected * (1 - 2 * y), rtol=1e-3)


@pytest.mark.parametrize("scale", [1e-20, 1e-6])
def test_l2_steps_are_not_shortened_where_gradients_are_tiny(scale):
  attack = attacks.basic_iterative(
    balls.L2(0.2), num_steps=4, step_size=0.05, **_NEVER
  )
  victim = victims.binary(scale * _W, 0.0)
  moved = (_drive(attack, victim, jnp.zeros(4, int)) - _X).reshape(4, 25) @ _W
  np.testing.assert_allclose(moved, 0.2 * np.linalg.norm(_W), rtol=1e-3)


def _victim():
  return victims.ordinary(25, 4)


_Y = victims.logits(_victim(), _X).argmax(axis=1).astype(np.int32)


@functools.cache
def _gradient_fn():
  def total(x):
    logits = _victim()(_KEYS, x)
    return jnp.sum(jax.vmap(losses.cross_entropy)(logits, jnp.asarray(_Y)))

  gradient = jax.jit(jax.grad(total))
  return lambda x: np.asarray(gradient(x.astype(np.float32)), np.float64)


def _rows(values, order=2):
  flat = values.reshape(len(values), -1)
  return np.linalg.norm(flat, order, axis=1).reshape(-1, 1, 1, 1)


def _project_l2(x, eps):
  delta = x - _X
  return _X + delta * np.minimum(1, eps / np.maximum(_rows(delta), 1e-12))


def test_momentum_by_hand():
  """The gradient is divided by each image's own L1 norm."""
  eps, alpha, decay = 0.7, 0.3, 0.9
  x, g = _X.astype(np.float64), 0.0
  for _ in range(3):
    grad = _gradient_fn()(x)
    g = decay * g + grad / _rows(grad, 1)
    x = _project_l2(x + alpha * g / _rows(g), eps)
  attack = attacks.mi_fgsm(
    balls.L2(eps), num_steps=3, step_size=alpha, decay=decay, **_NEVER
  )
  np.testing.assert_allclose(_drive(attack, _victim(), _Y), x, atol=1e-5)


def test_nesterov_by_hand():
  eps, alpha, decay = 0.7, 0.3, 0.7
  x, g = _X.astype(np.float64), 0 * _X
  for _ in range(3):
    grad = _gradient_fn()(_project_l2(x + alpha * decay * g, eps))
    g = decay * g + grad / _rows(grad, 1)
    x = _project_l2(x + alpha * g / _rows(g), eps)
  attack = attacks.ni_fgsm(
    balls.L2(eps), num_steps=3, step_size=alpha, decay=decay, **_NEVER
  )
  np.testing.assert_allclose(_drive(attack, _victim(), _Y), x, atol=1e-5)


def test_momentum_and_nesterov_default_to_steps_of_eps_over_num_steps():
  for make in (attacks.mi_fgsm, attacks.ni_fgsm):
    ball = balls.Linf(0.1)
    given = make(ball, num_steps=4, step_size=0.025, decay=1.0)
    assert jax.tree.leaves(make(ball, num_steps=4)) == jax.tree.leaves(given)


def test_adam_by_hand():
  rate, x = 0.02, _X.astype(np.float64)
  m = v = 0.0
  for t in (1, 2, 3):
    grad = _gradient_fn()(x)
    m, v = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad**2
    x = x + rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    x = _X + np.clip(x - _X, -0.05, 0.05)
  attack = attacks.adam_pgd(
    balls.Linf(0.05),
    num_steps=3,
    learning_rate=rate,
    start=attacks.at_input,
    **_NEVER,
  )
  np.testing.assert_allclose(_drive(attack, _victim(), _Y), x, atol=1e-5)


@pytest.mark.parametrize("random_step", [None, 0.02])
def test_r_fgsm_by_hand(random_step):
  eps = 0.1
  a = eps / 2 if random_step is None else random_step
  keys = oracles.start_keys(_KEYS)
  noise = [np.asarray(jax.random.normal(key, (5, 5, 1))) for key in keys]
  x = _X + a * np.sign(noise)
  x = x + (eps - a) * np.sign(_gradient_fn()(x))
  attack = attacks.r_fgsm(balls.Linf(eps), random_step=random_step, **_NEVER)
  np.testing.assert_allclose(_drive(attack, _victim(), _Y), x, atol=1e-6)


def test_fgsm_returns_what_is_misclassified_already():
  x_adv = _drive(attacks.fgsm(balls.Linf(0.1)), _victim(), (_Y + 1) % 4)
  np.testing.assert_array_equal(x_adv, _X)


def test_more_steps_are_never_weaker():
  """On a trained network; the mean loss over examples, as papers plot it."""
  x, y = victims.blobs(48)
  logits_fn = victims.trained()
  assert (victims.logits(logits_fn, x).argmax(axis=1) == y).mean() > 0.95
  keys = jax.random.split(jax.random.key(1), len(x))

  def loss(num_steps, step_size, ball):
    attack = attacks.basic_iterative(
      ball, num_steps=num_steps, step_size=step_size, **_NEVER
    )
    x_adv = contract.drive(attack, logits_fn, keys, x, y).state.x_adv
    logits = logits_fn(keys, x_adv)
    return float(jax.vmap(losses.cross_entropy)(logits, y).mean())

  for ball in (balls.Linf(0.12), balls.L2(0.6)):
    eps = ball.eps
    clean = loss(1, 1e-9, ball)
    fgsm = loss(1, eps, ball)
    ten, fifty = loss(10, eps / 5, ball), loss(50, eps / 20, ball)
    assert clean + 0.1 < fgsm <= ten + 1e-4 and ten <= fifty + 1e-4
    assert fgsm < fifty


def test_targeted_variants_reach_their_target():
  targets = (_Y + 2) % 4
  for ball in (balls.Linf(0.4), balls.L2(2.0)):
    attack = attacks.pgd(
      ball,
      num_steps=30,
      step_size=ball.eps / 8,
      loss_fn=losses.targeted_cross_entropy,
      criterion=criteria.classified_as,
    )
    x_adv = _drive(attack, _victim(), targets)
    best = victims.logits(_victim(), x_adv).argmax(axis=1)
    np.testing.assert_array_equal(best, targets)


def test_the_boundary_of_two_regions_and_of_a_bowl_is_found():
  """Curved victims: an attack must follow gradients that turn."""
  x = np.full((4, 5, 5, 1), 0.5, np.float32)
  x[:, 0, :2, 0] = [[0.7, 0.6], [0.3, 0.4], [0.7, 0.35], [0.2, 0.6]]
  y = np.array([0, 0, 1, 1])
  attack = attacks.basic_iterative(balls.L2(0.2), num_steps=20, step_size=0.03)
  victim = victims.two_regions()
  best = victims.logits(victim, _drive(attack, victim, y, x)).argmax(axis=1)
  # Their distances to the axis are 0.1, 0.1, 0.15 and 0.1.
  np.testing.assert_array_equal(best, 1 - y)
  bowl = victims.bowl(np.full(25, 0.5), 0.25)
  noise = np.random.default_rng(1).normal(size=x.shape)
  inside = (0.5 + 0.02 * noise).astype(np.float32)
  y = np.zeros(4, np.int32)
  assert (victims.logits(bowl, inside).argmax(axis=1) == 0).all()
  attack = attacks.basic_iterative(balls.L2(0.25), num_steps=5, step_size=0.06)
  gone = _drive(attack, bowl, y, inside)
  assert (victims.logits(bowl, gone).argmax(axis=1) == 1).all()


@pytest.mark.parametrize(
  ("make", "error", "words"),
  [
    (lambda b: attacks.pgd(b, step_size=-0.1), ValueError, "step_size"),
    (lambda b: attacks.pgd(b, step_size=float("nan")), ValueError, "step_size"),
    (
      lambda b: attacks.pgd(b, step_size=0.1, num_steps=0),
      ValueError,
      "num_steps must be at least 1",
    ),
    (
      lambda b: attacks.basic_iterative(b, step_size=0.1, num_steps=2.5),
      TypeError,
      "num_steps must be a whole number",
    ),
    (
      lambda b: attacks.fgsm(b, bounds=(1.0, 0.0)),
      ValueError,
      "bounds",
    ),
    (lambda b: attacks.mi_fgsm(b, decay=-1.0), ValueError, "decay"),
    (lambda b: attacks.mi_fgsm(b, num_steps=0), ValueError, "num_steps"),
    (lambda b: attacks.ni_fgsm(b, step_size=-1.0), ValueError, "step_size"),
    (lambda b: attacks.adam_pgd(b, learning_rate=0.0), ValueError, "learning"),
    (lambda b: attacks.r_fgsm(b, random_step=-0.1), ValueError, "random_step"),
    (lambda b: attacks.r_fgsm(b, random_step=0.5), ValueError, "random_step"),
  ],
)
def test_refuses_bad_parameters(make, error, words):
  with pytest.raises(error, match=words):
    make(balls.Linf(0.1))
