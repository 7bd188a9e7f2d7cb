"""Every regulariser where its value is known, and through a convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxadv import balls, models
from jaxadv.defences import regularisers

_KEY = jax.random.key(0)
_W = np.array([[1.0, -2.0, 0.5], [0.0, 1.0, 3.0]])  # [D, C]
_X = np.array([[0.2, 0.4], [0.6, 0.1], [0.9, 0.8], [0.3, 0.3], [0.5, 0.7]])
_LABEL = np.array([0, 2, 1, 1, 0])
_LOGITS = _X @ _W


def _linear(x):
  return x @ jnp.asarray(_W, jnp.float32)


def _value(regulariser, view=_linear, x=_X, label=_LABEL):
  ask = jax.jit(lambda x, label: regulariser(view, _KEY, x, label))
  return float(ask(jnp.asarray(x, jnp.float32), jnp.asarray(label)))


def _probabilities(logits):
  e = np.exp(logits)
  return e / e.sum(1, keepdims=True)


# d CE / dx of the linear model.
_GRADS = (_probabilities(_LOGITS) - np.eye(3)[_LABEL]) @ _W.T


def test_clean_logit_pairing_pairs_the_halves():
  expected = 0.5 * np.mean((_LOGITS[:2] - _LOGITS[2:4]) ** 2)
  assert _value(regularisers.clean_logit_pairing()) == pytest.approx(expected)
  with pytest.raises(ValueError, match="needs two inputs, got 1"):
    _value(regularisers.clean_logit_pairing(), x=_X[:1], label=_LABEL[:1])


def test_input_gradient():
  expected = 3.0 * np.mean(np.sum(_GRADS**2, axis=1))
  assert _value(regularisers.input_gradient(3.0)) == pytest.approx(expected)


def test_jacobian_is_unbiased():
  exact = 0.5 * np.sum(_W**2)
  many = regularisers.jacobian(1.0, num_projections=4000)
  assert _value(many) == pytest.approx(exact, rel=0.02)
  assert _value(regularisers.jacobian()) > 0
  # With one class the projection is exact: C ||v J||^2 = ||J||^2.
  one = lambda x: x @ jnp.array([[3.0], [4.0]])
  assert _value(regularisers.jacobian(0.1), one) == pytest.approx(0.5 * 2.5)


def test_curvature_is_the_change_of_the_gradient():
  z = np.sign(_GRADS) / np.sqrt(2)
  there = _probabilities((_X + 0.6 * z) @ _W) - np.eye(3)[_LABEL]
  change = np.sum((there @ _W.T - _GRADS) ** 2, axis=1)
  assert _value(regularisers.curvature()) == pytest.approx(
    4.0 * np.mean(change), rel=1e-4
  )
  assert _value(regularisers.curvature(h=0.0)) == 0.0


def test_virtual_adversarial_finds_the_worst_direction():
  # The Hessian of the divergence is W (diag(p) - p p^T) W^T.
  x, label = _X[:1], _LABEL[:1]
  p = _probabilities(_LOGITS)[0]
  hessian = _W @ (np.diag(p) - np.outer(p, p)) @ _W.T
  worst = np.linalg.eigh(hessian)[1][:, -1]

  def divergence(r):
    q = _probabilities((x + r) @ _W)[0]
    return np.sum(p * np.log(p / q))

  expected = {divergence(0.5 * worst), divergence(-0.5 * worst)}
  found = _value(
    regularisers.virtual_adversarial(0.5, num_power_steps=20), x=x, label=label
  )
  assert min(abs(found - value) for value in expected) < 1e-5


def test_virtual_adversarial_of_a_constant_model_is_zero():
  flat = lambda x: 0.0 * _linear(x)
  assert _value(regularisers.virtual_adversarial(0.5), flat) == 0.0


def test_gradient_alignment():
  # In two classes the gradient only ever changes its length.
  two = lambda x: _linear(x)[:, :2]
  aligned = regularisers.gradient_alignment(balls.Linf(0.1), 1.0)
  label = np.array([0, 1, 1, 0, 0])
  assert _value(aligned, two, label=label) == pytest.approx(0.0, abs=1e-6)

  def bowl(x):
    inner = jnp.sum(jnp.square(x - 0.5), axis=1)
    return jnp.stack([jnp.zeros_like(inner), inner], axis=1)

  keys = jax.random.split(_KEY, 5)
  u = jax.jit(jax.vmap(balls.Linf(0.3).sample))(keys, jnp.zeros((5, 2)))
  a, b = _X - 0.5, _X + np.asarray(u) - 0.5
  cosine = (
    np.sum(a * b, 1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
  )
  bent = regularisers.gradient_alignment(balls.Linf(0.3), 0.2)
  expected = 0.2 * np.mean(1 - cosine)
  assert _value(bent, bowl, label=0 * label) == pytest.approx(
    expected, rel=1e-4
  )
  # A row without gradient is left out, and does no harm to the others'.
  x = _X.copy()
  x[2] = 0.5
  others = 0.2 * np.mean(np.delete(1 - cosine, 2))
  assert _value(bent, bowl, x, 0 * label) == pytest.approx(others, rel=1e-4)


def test_gradient_alignment_where_no_gradient_is_left():
  term = regularisers.gradient_alignment(balls.Linf(0.1))
  rows = jnp.asarray(_X, jnp.float32), jnp.asarray(_LABEL)
  dead = lambda s: term(lambda x: nn.relu(s * _linear(x) - 100), _KEY, *rows)
  value, slope = jax.jit(jax.value_and_grad(dead))(1.0)
  assert float(value) == 0.0 and float(slope) == 0.0


class _TinyConv(nn.Module):
  @nn.compact
  def __call__(self, x, train=False):
    del train
    x = nn.Conv(
      2, (3, 3), strides=2, conv_general_dilated=models.conv_general_dilated
    )(x)
    return nn.Dense(3)(nn.tanh(x).reshape(len(x), -1))


_SECOND_ORDER = {
  "input_gradient": regularisers.input_gradient(1.0),
  "jacobian": regularisers.jacobian(1.0),
  "curvature": regularisers.curvature(1.0, 0.5),
}


@pytest.mark.parametrize("name", list(_SECOND_ORDER))
def test_differentiates_through_a_convolution(name):
  module = _TinyConv()
  x = jax.random.uniform(_KEY, (4, 4, 4, 1))
  label = jnp.array([0, 1, 2, 0])
  variables = module.init(jax.random.key(1), x)
  objective = jax.jit(
    lambda variables: _SECOND_ORDER[name](
      lambda x: module.apply(variables, x), _KEY, x, label
    )
  )
  slope = jax.jit(jax.grad(objective))(variables)
  direction = jax.tree.map(
    lambda v: jax.random.normal(jax.random.key(v.size), v.shape), variables
  )
  step = 2e-3
  ends = [
    objective(jax.tree.map(lambda v, d, s=s: v + s * d, variables, direction))
    for s in (step, -step)
  ]
  along = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, slope, direction)))
  assert abs(float(along)) > 1e-3
  np.testing.assert_allclose((ends[0] - ends[1]) / (2 * step), along, rtol=0.02)


def test_virtual_adversarial_holds_the_clean_prediction_fixed():
  w, x = np.array([[1.0, -2.0, 0.5]]), np.array([[0.4]])
  vat = regularisers.virtual_adversarial(0.5)

  def value(scale):
    view = lambda x: scale * (x @ jnp.asarray(w, jnp.float32))
    return vat(view, _KEY, jnp.asarray(x, jnp.float32), None)

  found, slope = jax.jit(jax.value_and_grad(value))(1.0)
  p = _probabilities(x @ w)[0]
  q = {r: _probabilities((x + r) @ w)[0] for r in (0.5, -0.5)}
  r = min(q, key=lambda r: abs(np.sum(p * np.log(p / q[r])) - found))
  expected = np.sum((q[r] - p) * w[0]) * (x[0, 0] + r)
  np.testing.assert_allclose(slope, expected, rtol=1e-4)


def test_gradient_alignment_holds_the_gradient_at_the_input_fixed():
  # Class 1 leads by a x_0^2 + x_1^2: gradients are along (a x_0, x_1).
  def view(a):
    def logits(x):
      lead = a * x[:, 0] ** 2 + x[:, 1] ** 2
      return jnp.stack([jnp.zeros_like(lead), lead], axis=1)

    return logits

  ball, x = balls.L2(0.3), np.array([[0.3, 0.4]])
  u = ball.sample(jax.random.split(_KEY, 1)[0], jnp.zeros(2))
  x_there = x[0] + np.asarray(u)
  term = regularisers.gradient_alignment(ball, 1.0)
  rows = jnp.asarray(x, jnp.float32), jnp.zeros(1, int)
  slope = jax.jit(jax.grad(lambda a: term(view(a), _KEY, *rows)))(2.0)

  def distance(a):
    here, there = np.array([2.0, 1.0]) * x[0], np.array([a, 1.0]) * x_there
    return 1 - here @ there / np.linalg.norm(here) / np.linalg.norm(there)

  expected = (distance(2.01) - distance(1.99)) / 0.02
  np.testing.assert_allclose(slope, expected, rtol=1e-3)


@pytest.mark.parametrize(
  "make",
  [
    lambda: regularisers.clean_logit_pairing(-1.0),
    lambda: regularisers.input_gradient(-1.0),
    lambda: regularisers.jacobian(num_projections=0),
    lambda: regularisers.curvature(h=-1.0),
    lambda: regularisers.virtual_adversarial(0.0),
    lambda: regularisers.gradient_alignment(balls.Linf(0.1), -1.0),
  ],
)
def test_refuses_numbers_out_of_range(make):
  with pytest.raises(ValueError, match="must be"):
    make()
