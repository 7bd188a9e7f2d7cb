import collections

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxadv import losses, models, train_state
from jaxadv.defences import ensembles, training, weights

_KEY = jax.random.key(0)
_PARAMS = {
  "kernel": jnp.array([[3.0, 0.0], [0.0, 4.0]]),
  "idle": jnp.ones((2, 3)),
  "scale": jnp.array([1.0, 2.0]),
  "bias": jnp.array(0.5),
}


def _objective(params):
  # The gradient of the kernel is [[6, 0], [8, 0]], of length 10.
  pull = jnp.array([[6.0, 0.0], [8.0, 0.0]])
  total = jnp.sum(pull * params["kernel"]) + 0.0 * jnp.sum(params["idle"])
  return total + jnp.sum(params["scale"]) + params["bias"]


def test_awp_moves_each_layer_by_its_own_length():
  found = weights.awp(0.1)(_objective, _KEY, _PARAMS)
  # gamma ||w|| g / ||g|| = 0.1 * 5 * [[0.6, 0], [0.8, 0]].
  np.testing.assert_allclose(
    found["kernel"] - _PARAMS["kernel"], [[0.3, 0.0], [0.4, 0.0]], atol=1e-6
  )


def test_awp_of_an_ensemble_is_that_of_each_member():
  member = models.MLP(features=(4,), num_classes=3)
  module = ensembles.Ensemble(member=member, num_members=2)
  x, y = jnp.linspace(0, 1, 12).reshape(3, 2, 2, 1), jnp.array([0, 1, 2])
  params = module.init(_KEY, x)["params"]
  # Members of very different lengths, and biases that are not zero.
  params = jax.tree.map(
    lambda w: (
      (w + 0.1) * jnp.reshape(jnp.array([1.0, 30.0]), (2, *(1,) * (w.ndim - 1)))
    ),
    params,
  )

  def of_member(params):
    logits = member.apply({"params": params}, x)
    return jnp.sum(jax.vmap(losses.cross_entropy)(logits, y))

  part = lambda tree, k: jax.tree.map(lambda w: w[k], tree["member"])

  def objective(params):
    return sum(of_member(part(params, k)) for k in (0, 1))

  found = weights.awp(0.1)(objective, _KEY, params)
  for k in (0, 1):
    expected = weights.awp(0.1)(of_member, _KEY, part(params, k))
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
      part(found, k),
      expected,
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16])
def test_awp_leaves_vectors_and_layers_without_gradient(dtype):
  params = jax.tree.map(lambda w: w.astype(dtype), _PARAMS)
  found = weights.awp(0.1)(_objective, _KEY, params)
  for name in ("idle", "scale", "bias"):
    np.testing.assert_array_equal(found[name], params[name])


def test_awp_is_undone_before_the_optimiser_steps_and_costs_one_gradient():
  calls = collections.Counter()

  @jax.custom_vjp
  def watched(x):
    return x

  def backward(_, g):
    jax.debug.callback(lambda: calls.update(["backward"]))
    return (g,)

  watched.defvjp(lambda x: (x, None), backward)

  def apply_fn(variables, x):
    return watched(x @ variables["params"]["w"])

  def train_apply(variables, key, x):
    del key
    return apply_fn(variables, x), {}

  w = jnp.array([[1.0, -1.0], [0.5, 2.0]])
  state = train_state.TrainState.create(
    apply_fn=apply_fn,
    params={"w": w},
    tx=optax.sgd(1.0),
    batch_stats={},
    key=_KEY,
  )
  x, label = jnp.array([[1.0, 2.0], [3.0, -1.0]]), jnp.array([0, 1])
  new, _ = jax.jit(
    lambda state, batch: training.train_step(
      state,
      batch,
      train_apply=train_apply,
      robust_loss=training.standard,
      perturb_weights=weights.awp(0.2),
    )
  )(state, {"image": x, "label": label})
  jax.effects_barrier()
  assert calls["backward"] == 2

  def slope(w):
    z = np.asarray(x, float) @ w
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    return np.asarray(x, float).T @ (p - np.eye(2)[np.asarray(label)]) / 2

  w = np.asarray(w, float)
  g = slope(w)
  moved = w + 0.2 * np.linalg.norm(w) / np.linalg.norm(g) * g
  np.testing.assert_allclose(new.params["w"], w - slope(moved), rtol=1e-5)


def test_when_perturbs_after_the_warm_up_only():
  calls = []

  def watched(params):
    jax.debug.callback(lambda: calls.append(1))
    return _objective(params)

  @jax.jit
  def at(step):
    perturb = weights.when(step >= 3, weights.awp(0.1))
    return perturb(watched, _KEY, _PARAMS)

  np.testing.assert_array_equal(at(2)["kernel"], _PARAMS["kernel"])
  jax.effects_barrier()
  assert not calls
  np.testing.assert_allclose(at(3)["kernel"][1, 0], 0.4, atol=1e-6)


def test_refuses_a_negative_gamma():
  with pytest.raises(ValueError, match="gamma must be >= 0"):
    weights.awp(-0.1)
