"""NewtonFool against closed forms and a re-derivation in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import engine
from jaxadv.attacks.newton_fool import newton_fool
from tests import victims

KEY = jax.random.key(0)
WIDE = (-100.0, 100.0)


def _problem(num_classes=4, scale=1.0):
  rng = np.random.default_rng(0)
  w = scale * rng.normal(size=(6, num_classes))
  b = scale * 0.1 * rng.normal(size=num_classes)
  x = rng.normal(size=(5, 6)).astype(np.float32)
  return w, b, x, np.argmax(x @ w + b, axis=1).astype(np.int32)


def _craft(attack, logits_fn, x, label, bounds=WIDE):
  return engine.craft(attack, logits_fn, KEY, x, label, progress=False)


def _by_hand(w, b, x, label, eta, bounds):
  """The paper's rule, of one example: the point that won, and the steps."""
  point, steps = x.astype(np.float64), 1
  while np.argmax(point @ w + b) == label:
    z = point @ w + b
    p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
    g = w @ (p[label] * (np.eye(len(p))[label] - p))
    size = np.linalg.norm(g)
    theta = min(eta * np.linalg.norm(x) * size, p[label] - 1 / len(p))
    point = np.clip(point - theta * g / size**2, *bounds)
    steps += 1
  return point, steps


@pytest.mark.parametrize("eta", [0.05, 2.0])
@pytest.mark.parametrize("bounds", [WIDE, (-1.5, 1.25)])
def test_follows_the_papers_rule(eta, bounds):
  w, b, x, _ = _problem(scale=0.5)
  x = np.clip(x, *bounds)
  label = np.argmax(x @ w + b, axis=1).astype(np.int32)
  attack = newton_fool(eta=eta, bounds=bounds)
  record = _craft(attack, victims.linear(w, b), x, label, bounds)
  assert record.success.all()
  for i in range(len(x)):
    point, steps = _by_hand(w, b, x[i], label[i], eta, bounds)
    np.testing.assert_allclose(record.x_adv[i], point, rtol=1e-3, atol=1e-4)
    assert record.steps[i] == record.backwards[i] == steps
  assert (record.steps > 2).any() == (eta < 1)


@pytest.mark.parametrize("scale", [0.3, 1.0, 300.0])
def test_finds_the_distance_of_a_linear_model(scale):
  """Also where p is 1 and its gradient 0 in float32.

  Of two classes the last step would end on the boundary, for rounding to say
  who wins: a third one that never wins lets it go on to p = 1/3.
  """
  w, b, x, label = _problem(2, scale)
  w, b = np.pad(w, [(0, 0), (0, 1)]), np.append(b, -1e5)
  attack = newton_fool(num_steps=3000, eta=5e-4, bounds=WIDE)
  record = _craft(attack, victims.linear(w, b), x, label)
  assert record.success.all()
  exact = victims.linear_distance(w, b, x, label, 2)
  over = record.distance["l2"] - exact
  step = 5e-4 * np.linalg.norm(x, axis=1)
  assert (over >= -1e-4).all() and (over <= 1.01 * step + 1e-4).all()
  clear = exact > 0.1
  np.testing.assert_allclose(
    record.distance["l2"][clear], exact[clear], rtol=0.01
  )
  assert clear.sum() >= 3


def test_no_step_goes_below_the_probability_of_chance():
  """Two classes: Newton's step at p, exactly, where eta does not bind."""
  w = np.asarray([1.0, 0.0])
  x = np.asarray([[-1.0, 5.0]], np.float32)
  attack = newton_fool(eta=100.0, bounds=WIDE)
  keys = jax.random.split(KEY, 1)
  state = attack.init(keys, jnp.asarray(x), jnp.zeros(1, int))
  state, _ = attack.step(victims.binary(w, 0.0), state)
  p = 1 / (1 + np.exp(-1.0))
  np.testing.assert_allclose(
    state.point, [[-1 + (p - 0.5) / (p * (1 - p)), 5.0]], rtol=1e-5
  )


@pytest.mark.parametrize(
  "victim", [victims.constant, victims.nan_gradient], ids=["constant", "nan"]
)
def test_a_failure_keeps_the_clean_input(victim):
  x = np.full((2, 6), 0.5, np.float32)
  logits_fn = victim(6, 3)
  label = victims.logits(logits_fn, x).argmax(axis=1).astype(np.int32)
  record = _craft(newton_fool(num_steps=3), logits_fn, x, label, (0.0, 1.0))
  assert not record.success.any()
  np.testing.assert_array_equal(record.steps, 4)
  np.testing.assert_array_equal(record.x_adv, x)


def test_an_input_that_is_wrong_already_is_its_own_result():
  w, b, x, label = _problem()
  record = _craft(
    newton_fool(bounds=WIDE), victims.linear(w, b), x, (label + 1) % 4
  )
  assert record.success.all()
  np.testing.assert_array_equal(record.x_adv, x)
  np.testing.assert_array_equal(record.steps, 1)


@pytest.mark.parametrize(
  "options", [{"num_steps": 0}, {"eta": 0.0}, {"bounds": (1.0, 0.0)}]
)
def test_refuses_senseless_options(options):
  with pytest.raises(ValueError, match=next(iter(options))):
    newton_fool(**options)
