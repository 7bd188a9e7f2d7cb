"""A tiny network, batch and attack: what tests of a training step share."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from jaxadv import attacks, balls, criteria, losses, models, train_state
from jaxadv.defences import training

MODULE = models.MLP(features=(8,), num_classes=3)
_BALL = balls.Linf(0.1)
_SGD = optax.sgd(0.5)


def attack(num_steps, **options):
  return attacks.pgd(
    _BALL,
    num_steps=num_steps,
    step_size=0.05,
    criterion=criteria.never,
    **options,
  )


def batch(num_rows=12):
  rng = np.random.default_rng(0)
  image = rng.uniform(size=(num_rows, 2, 2, 1)).astype(np.float32)
  label = (image.sum(axis=(1, 2, 3)) > 2.0).astype(np.int32)
  return {"image": jnp.asarray(image), "label": jnp.asarray(label)}


def state(module=MODULE):
  x = batch()["image"]
  return train_state.create(module, _SGD, jax.random.key(3), x)


def step(state, batch, module=MODULE, **options):
  apply_fn = train_state.train_apply(module)
  return jax.jit(
    lambda state, batch: training.train_step(
      state, batch, train_apply=apply_fn, **options
    )
  )(state, batch)


def assert_trees_equal(a, b, **tolerance):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


class Normalised(nn.Module):
  @nn.compact
  def __call__(self, x, train=False):
    x = nn.BatchNorm(use_running_average=not train)(x.reshape(len(x), -1))
    return nn.Dense(3)(x)


def _fgsm_mixture(clean, adv, y):
  return losses.cross_entropy(clean, y) + losses.cross_entropy(adv, y)


MIXTURE = training.RobustLoss(_fgsm_mixture, clean=True, adversarial=True)
