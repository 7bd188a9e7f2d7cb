"""Adversarial training: one step, composed of parts.

    x_adv = attack(model, x, adversary_target(model, x, y))
    minimise mean robust_loss(logits(x), logits(x_adv), y)

A recipe of a paper is a choice of the parts, never a loop of its own. Two
choices that implementations make silently are made here once:

* The attack sees the evaluation view of the current weights: frozen batch
  statistics and no dropout. It runs outside `jax.grad`, so nothing is
  differentiated through it.
* Batch statistics are updated by the forward passes of the loss alone, never by
  the attack: with both branches by the clean one, then by the adversarial one.

An attack of k steps makes a training step of exactly k + 1 gradients. Build it
with `criterion=criteria.never`, so that every row spends the whole budget.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxadv import engine, losses, train_state, types

Array = jax.Array
# "image" [B, ...] in the bounds, "label": whatever the loss wants, B rows.
Batch = dict[str, Any]
# What the attack is told about a batch: `(logits_fn, key, batch) -> y`.
AdversaryTarget = Callable[[types.LogitsFn, Array, Batch], types.PyTree]
Augment = Callable[[Array, Batch], Batch]


class RobustLoss(NamedTuple):
  """What training makes small, and which forward passes it needs.

  Attributes:
    loss_fn: `(clean_logits[C], adv_logits[C], y) -> []` for ONE example. The
      logits of a branch that is not asked for are None.
    clean: Whether it reads the clean logits.
    adversarial: Whether it reads the adversarial ones; else nothing is
      attacked.
  """

  loss_fn: Callable[[Any, Any, types.PyTree], Array]
  clean: bool
  adversarial: bool


def _standard(clean_logits, adv_logits, y) -> Array:
  del adv_logits
  return losses.cross_entropy(clean_logits, y)


def _madry(clean_logits, adv_logits, y) -> Array:
  del clean_logits
  return losses.cross_entropy(adv_logits, y)


# Cross-entropy on the clean inputs: no defence, one gradient per step.
standard = RobustLoss(_standard, clean=True, adversarial=False)
# Cross-entropy on the adversarial inputs alone (Madry et al., "Towards deep
# learning models resistant to adversarial attacks", 2018).
madry = RobustLoss(_madry, clean=False, adversarial=True)


def labels(logits_fn: types.LogitsFn, key: Array, batch: Batch) -> Array:
  """The attack drives away from the labels."""
  del logits_fn, key
  return batch["label"]


class Metrics(NamedTuple):
  """Means over the batch, before the update.

  Attributes:
    loss: The robust loss [].
    accuracy: Of the adversarial inputs, or of the clean ones where nothing is
      attacked [].
  """

  loss: Array
  accuracy: Array


def train_step(
  state: train_state.TrainState,
  batch: Batch,
  *,
  train_apply: train_state.TrainApply,
  robust_loss: RobustLoss,
  attack: types.Attack | None = None,
  adversary_target: AdversaryTarget = labels,
  augment: Augment | None = None,
) -> tuple[train_state.TrainState, Metrics]:
  """One step of (adversarial) training; pure, so jit it and donate `state`.

  Args:
    state: Weights, optimiser and key.
    batch: "image" [B, ...] and "label" [B].
    train_apply: The training view of the network.
    robust_loss: What to minimise.
    attack: Makes the adversarial branch, where the loss has one.
    adversary_target: What the attack is given as `y`.
    augment: `(key, batch) -> batch`, before anything else.

  Returns:
    The next state and the metrics of this batch.

  Raises:
    ValueError: the loss has an adversarial branch and there is no attack.
  """
  keys = jax.random.split(jax.random.fold_in(state.key, state.step), 4)
  key_augment, key_target, key_attack, key_model = keys
  if augment is not None:
    batch = augment(key_augment, batch)
  x, y = batch["image"], batch["label"]
  x_adv = None
  if robust_loss.adversarial:
    if attack is None:
      raise ValueError(
        "attack must be given: robust_loss has an adversarial branch; "
        "`training.standard` has none"
      )
    logits_fn = state.logits_fn()
    target = adversary_target(logits_fn, key_target, batch)
    x_adv = engine.run(attack, logits_fn, key_attack, x, target)
  branches = (x if robust_loss.clean else None, x_adv)

  def objective(params):
    clean, adv, batch_stats = _forward(
      train_apply, state, params, key_model, branches
    )
    loss = jnp.mean(jax.vmap(robust_loss.loss_fn)(clean, adv, y))
    return loss, (clean if adv is None else adv, batch_stats)

  (loss, (logits, batch_stats)), grads = jax.value_and_grad(
    objective, has_aux=True
  )(state.params)
  accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == batch["label"])
  return state.update(grads, batch_stats), Metrics(loss, accuracy)


def _forward(train_apply, state, params, key, branches):
  """The logits of both branches, None where there is none."""
  batch_stats = state.batch_stats
  logits: list[Any] = []
  for branch, x in enumerate(branches):
    if x is None:
      logits.append(None)
      continue
    # The collection is left out where it is empty, as in `state.variables`.
    variables = state.replace(params=params, batch_stats=batch_stats).variables
    answer, batch_stats = train_apply(
      variables, jax.random.fold_in(key, branch), x
    )
    logits.append(answer)
  return *logits, batch_stats
