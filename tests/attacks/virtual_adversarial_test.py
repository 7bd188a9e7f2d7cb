"""VAT's direction against the eigenvectors of the exact Hessian."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import criteria
from jaxadv.attacks.virtual_adversarial import virtual_adversarial
from tests import contract, victims

KEYS = jax.random.split(jax.random.key(0), 5)
_RNG = np.random.default_rng(0)
W, B = _RNG.normal(size=(30, 4)), 0.1 * _RNG.normal(size=4)
X = _RNG.uniform(0.4, 0.6, size=(5, 30)).astype(np.float32)


def _probabilities(x, w=W):
  z = np.asarray(x, np.float64) @ w + B
  p = np.exp(z - z.max(axis=1, keepdims=True))
  return p / p.sum(axis=1, keepdims=True)


def _hessians(x, w=W):
  """Of KL(p(x) || p(x + d)) at d = 0: W (diag(p) - p p^T) W^T."""
  return [w @ (np.diag(p) - np.outer(p, p)) @ w.T for p in _probabilities(x, w)]


def _drive(x=X, w=W, logits_fn=None, eps=0.3, **options):
  y = jnp.asarray(_probabilities(x, w), jnp.float32)
  attack = virtual_adversarial(eps, **options)
  logits_fn = victims.linear(w, B) if logits_fn is None else logits_fn
  return attack, contract.drive(attack, logits_fn, KEYS[: len(x)], x, y).state


def _unit(v):
  return v / np.linalg.norm(v)


def test_converges_to_the_leading_eigenvector():
  _, state = _drive(num_steps=40, criterion=criteria.never)
  for x, x_adv, hessian in zip(X, state.x_adv, _hessians(X), strict=True):
    leading = np.linalg.eigh(hessian)[1][:, -1]
    delta = np.asarray(x_adv, np.float64) - x
    np.testing.assert_allclose(np.linalg.norm(delta), 0.3, rtol=1e-4)
    assert abs(_unit(delta) @ leading) > 0.999


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_one_step_multiplies_the_random_direction_by_the_hessian(scale):
  w = scale * W
  attack, state = _drive(w=w, criterion=criteria.never)
  assert attack.num_steps == 1
  start = attack.init(KEYS, jnp.asarray(X), jnp.zeros((5, 4)))
  first = np.asarray(start.direction)
  np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1.0, rtol=1e-5)
  for i, hessian in enumerate(_hessians(X, w)):
    delta = np.asarray(state.x_adv[i], np.float64) - X[i]
    assert _unit(delta) @ _unit(hessian @ first[i]) > 0.995


def test_questions_and_results_stay_in_the_bounds():
  """Black pixels cannot follow a direction below zero."""
  x = np.where(X > 0.5, 0.0, X).astype(np.float32)
  attack, state = _drive(x, eps=0.5, criterion=criteria.never)
  first = attack.init(KEYS, jnp.asarray(x), jnp.zeros((5, 4))).direction
  asked = np.clip(x + 0.01 * np.asarray(first), 0, 1) - x
  for i, hessian in enumerate(_hessians(x)):
    step = 0.5 * _unit(hessian @ asked[i])
    expected = np.clip(x[i] + step, 0, 1)
    np.testing.assert_allclose(state.x_adv[i], expected, atol=5e-3)
  assert (np.asarray(state.x_adv) >= 0).all()


def test_a_model_without_gradient_keeps_the_random_direction():
  attack, state = _drive(
    logits_fn=victims.linear(0 * W, B), num_steps=3, criterion=criteria.never
  )
  first = attack.init(KEYS, jnp.asarray(X), jnp.zeros((5, 4))).direction
  np.testing.assert_allclose(state.x_adv - X, 0.3 * first, atol=1e-6)


def test_a_row_whose_output_differs_already_is_done():
  attack = virtual_adversarial(0.3, num_steps=5)
  y = jnp.roll(jnp.asarray(_probabilities(X), jnp.float32), 1, axis=1)
  result = contract.drive(attack, victims.linear(W, B), KEYS, X, y)
  assert result.state.found.all() and (result.steps == 1).all()
  assert (np.abs(result.state.x_adv - X) <= 0.01).all()


@pytest.mark.parametrize(
  "options",
  [{"num_steps": 0}, {"xi": 0.0}, {"eps": -1.0}, {"bounds": (1.0, 0.0)}],
)
def test_refuses_senseless_options(options):
  with pytest.raises(ValueError, match=next(iter(options))):
    virtual_adversarial(**{"eps": 0.3, **options})
