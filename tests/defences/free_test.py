import collections

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxadv import balls, models, train_state
from jaxadv.defences import free

_MODULE = models.MLP(features=(6,), num_classes=3)
_APPLY = train_state.train_apply(_MODULE)
_BALL = balls.Linf(0.1)
_SGD = optax.sgd(0.5)


def _batch(seed):
  rng = np.random.default_rng(seed)
  image = rng.uniform(size=(6, 2, 2, 1)).astype(np.float32)
  # Some pixels at the bounds, where the perturbation is cut off.
  image = np.round(image * 4) / 4
  label = rng.integers(0, 3, 6).astype(np.int32)
  return {"image": jnp.asarray(image), "label": jnp.asarray(label)}


def _state(optimizer=_SGD):
  x = _batch(0)["image"]
  state = train_state.create(_MODULE, optimizer, jax.random.key(3), x)
  return free.start(state, x)


@jax.jit
def _step(state, batch):
  return free.train_step(
    state, batch, train_apply=_APPLY, ball=_BALL, num_replays=3
  )


@jax.jit
def _gradients(params, x, label):
  def objective(params, x):
    logits = _MODULE.apply({"params": params}, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()

  return jax.value_and_grad(objective, argnums=(0, 1))(params, x)


def _by_hand(params, delta, batch):
  x = np.asarray(batch["image"])
  delta = np.clip(delta, -x, 1 - x)
  for _ in range(3):
    loss, (grads, uphill) = _gradients(
      params, jnp.asarray(x + delta), batch["label"]
    )
    params = jax.tree.map(lambda p, g: p - 0.5 * g, params, grads)
    delta = np.clip(delta + 0.1 * np.sign(uphill), -0.1, 0.1)
    delta = np.clip(delta, -x, 1 - x)
  return params, delta, loss


def test_replays_by_hand_and_carries_the_perturbation():
  state = _state()
  params, delta = state.params, np.zeros((6, 2, 2, 1), np.float32)
  for seed in (0, 1):
    batch = _batch(seed)
    state, metrics = _step(state, batch)
    params, delta, loss = _by_hand(params, delta, batch)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
      state.params,
      params,
    )
    np.testing.assert_allclose(state.carry, delta, atol=1e-6)
    np.testing.assert_allclose(metrics.loss, loss, rtol=1e-5)
  assert np.abs(delta).max() > 0.09
  assert int(state.step) == 2


def test_one_backward_pass_per_replay():
  calls = collections.Counter()
  watched = jax.custom_vjp(lambda x: x)

  def tick(name):
    jax.debug.callback(lambda: calls.update([name]))

  def forward(x):
    tick("forward")
    return x, None

  def backward(_, g):
    tick("backward")
    return (g,)

  watched.defvjp(forward, backward)

  def apply_fn(variables, key, x):
    del key
    return watched(_MODULE.apply(variables, x)), {}

  step = jax.jit(
    lambda state, batch: free.train_step(
      state, batch, train_apply=apply_fn, ball=_BALL, num_replays=4
    )
  )
  jax.block_until_ready(step(_state(), _batch(0)))
  jax.effects_barrier()
  assert calls == {"forward": 4, "backward": 4}


def test_the_optimiser_counts_replays():
  state, _ = _step(_state(optax.adam(1e-3)), _batch(0))
  assert int(state.opt_state[0].count) == 3
  assert int(state.step) == 1


def test_goes_on_from_its_leaves():
  # What a checkpoint holds is all that the next step needs.
  state, _ = _step(_state(), _batch(0))
  leaves, structure = jax.tree.flatten(state)
  restored = jax.tree.unflatten(structure, [jnp.copy(leaf) for leaf in leaves])
  a, b = _step(state, _batch(1))[0], _step(restored, _batch(1))[0]
  jax.tree.map(np.testing.assert_array_equal, a.params, b.params)
  assert any(leaf is state.carry for leaf in leaves)


def test_needs_its_perturbation():
  x = _batch(0)["image"]
  state = train_state.create(_MODULE, _SGD, jax.random.key(3), x)
  options = {"train_apply": _APPLY, "ball": _BALL}
  with pytest.raises(ValueError, match=r"got None: begin with free.start"):
    free.train_step(state, _batch(0), **options)
  state = free.start(state, x[:4])
  with pytest.raises(ValueError, match=r"\(6, 2, 2, 1\), got \(4, 2, 2, 1\)"):
    free.train_step(state, _batch(0), **options)
