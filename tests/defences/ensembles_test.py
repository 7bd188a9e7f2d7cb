import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jaxadv import models, train_state
from jaxadv.defences import ensembles, robust_losses, training
from tests import victims

_LOGITS = np.array([[2.0, 0.0, 1.0], [0.0, 1.0, 0.5], [-1.0, 3.0, 0.0]])
_RNG = np.random.default_rng(0)
_X = _RNG.uniform(size=(4, 3)).astype(np.float32)


def _softmax(z):
  return np.exp(z) / np.exp(z).sum(-1, keepdims=True)


def test_aggregates():
  logits = jnp.asarray(_LOGITS, jnp.float32)
  mean = _softmax(_LOGITS).mean(0)
  np.testing.assert_allclose(
    ensembles.mean_probability(logits), np.log(mean), rtol=1e-5
  )
  np.testing.assert_allclose(
    ensembles.mean_logit(logits), _LOGITS.mean(0), rtol=1e-6
  )
  np.testing.assert_allclose(
    ensembles.vote(logits), np.array([1.0, 2.0, 0.0]) + 0.5 * mean, rtol=1e-5
  )


def test_a_vote_counts_more_than_any_confidence():
  # One certain member against two that hardly prefer class 1.
  logits = jnp.array([[50.0, 0.0, 0.0], [1.0, 1.01, 0.0], [1.0, 1.01, 0.0]])
  assert int(jnp.argmax(ensembles.vote(logits))) == 1
  assert int(jnp.argmax(ensembles.mean_logit(logits))) == 0
  # A tie goes to the more probable class.
  assert int(jnp.argmax(ensembles.vote(logits[:2]))) == 0


def _linear(seed):
  rng = np.random.default_rng(seed)
  return victims.linear(rng.normal(size=(3, 4)), rng.normal(size=4))


def test_combines_stacked_and_differing_models_alike():
  same = [_linear(0), _linear(1), _linear(2)]
  logits = np.stack([victims.logits(model, _X) for model in same], axis=1)
  expected = np.log(_softmax(logits).mean(1))
  ensemble = ensembles.combine(same)
  np.testing.assert_allclose(
    victims.logits(ensemble, _X), expected, rtol=1e-4, atol=1e-6
  )
  # One call of the model function serves all members.
  before = victims.CALLS["affine"]
  victims.logits(ensemble, _X)
  assert victims.CALLS["affine"] == before + 1
  mixed = ensembles.combine(
    [_linear(0), victims.ordinary(3, 4)], ensembles.mean_logit
  )
  halves = [victims.logits(m, _X) for m in (same[0], victims.ordinary(3, 4))]
  np.testing.assert_allclose(
    victims.logits(mixed, _X), np.mean(halves, axis=0), rtol=1e-5
  )


def test_its_weights_are_leaves():
  compiled = []

  @jax.jit
  def ask(model, keys, x):
    compiled.append(1)
    return model(keys, x)

  keys = jax.random.split(jax.random.key(0), len(_X))
  for seed in (0, 5):
    ask(ensembles.combine([_linear(seed), _linear(seed + 1)]), keys, _X)
  assert len(compiled) == 1


class _Member(nn.Module):
  @nn.compact
  def __call__(self, x, train=False):
    x = nn.Conv(2, (2, 2), conv_general_dilated=models.conv_general_dilated)(x)
    x = nn.BatchNorm(use_running_average=not train)(x).reshape(len(x), -1)
    x = nn.Dropout(0.5, deterministic=not train)(x)
    return nn.Dense(3)(x)


def test_an_ensemble_trains_its_members_and_answers_as_one():
  module = ensembles.Ensemble(_Member(), 2)
  assert hash(module) == hash(ensembles.Ensemble(_Member(), 2))
  rng = np.random.default_rng(1)
  batch = {
    "image": jnp.asarray(rng.uniform(size=(6, 3, 3, 1)), jnp.float32),
    "label": jnp.array([0, 1, 2, 0, 1, 2]),
  }
  state = train_state.create(
    module, optax.sgd(0.1), jax.random.key(0), batch["image"]
  )
  kernels = jax.tree.leaves(state.params)
  assert all(leaf.shape[0] == 2 for leaf in kernels)
  assert not np.allclose(kernels[-1][0], kernels[-1][1])

  apply_fn = train_state.train_apply(module)
  members, _ = jax.jit(apply_fn)(
    state.variables, jax.random.key(1), batch["image"]
  )
  assert members.shape == (6, 2, 3)

  @jax.jit
  def one_by_one(variables, x):
    return jnp.stack(
      [
        _Member().apply(
          {
            name: jax.tree.map(lambda v, k=k: v[k], tree["member"])
            for name, tree in variables.items()
          },
          x,
        )
        for k in range(2)
      ],
      axis=1,
    )

  logits = one_by_one(state.variables, batch["image"])
  expected = jax.vmap(ensembles.mean_probability)(logits)
  keys = jax.random.split(jax.random.key(0), 6)
  found = jax.jit(lambda f, x: f(keys, x))(state.logits_fn(), batch["image"])
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)

  new, metrics = jax.jit(
    lambda state, batch: training.train_step(
      state,
      batch,
      train_apply=apply_fn,
      robust_loss=robust_losses.adp(),
    )
  )(state, batch)
  assert np.isfinite(metrics.loss)
  for old, now in zip(
    jax.tree.leaves(state.batch_stats),
    jax.tree.leaves(new.batch_stats),
    strict=True,
  ):
    assert now.shape[0] == 2 and not np.allclose(old, now)


def test_refuses_nothing():
  with pytest.raises(ValueError, match="at least one model"):
    ensembles.combine([])
