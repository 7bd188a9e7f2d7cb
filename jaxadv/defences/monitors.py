"""Watching training: does it still resist an attack it does not train on?

Training with one-step attacks can overfit to them within an epoch: the network
becomes right on their results and wrong on those of any PGD (catastrophic
overfitting). The loss does not show it.
"""

import jax

from jaxadv import engine, types
from jaxadv.defences import training

Array = jax.Array


def adversarial_accuracy(
  attack: types.Attack,
  logits_fn: types.LogitsFn,
  key: Array,
  batch: training.Batch,
) -> Array:
  """The accuracy under attack of one batch []; pure, so jit it.

  Wong et al. (2020) take a batch of the training set, each epoch, and PGD of 5
  steps of 2/255: `attacks.pgd(ball, num_steps=5, step_size=2 / 255)`.
  """
  key_attack, key_model = jax.random.split(key)
  x, label = batch["image"], batch["label"]
  x_adv = engine.run(attack, logits_fn, key_attack, x, label)
  logits = logits_fn(jax.random.split(key_model, len(x)), x_adv)
  return training.accuracy(logits, label)


def collapsed(before: float, now: float, *, drop: float = 0.2) -> bool:
  """Whether the accuracy under attack has fallen by more than `drop`.

  One that is not a number has.

  Then Wong et al. (2020) stop, and keep the weights of `before`; 0.2 from one
  epoch to the next is their code's.
  """
  return not now - before >= -drop
