"""Adversarial training: one step, composed of parts.

    x_adv = attack(model, x, adversary_target(model, x, y))
    minimise mean robust_loss(logits(x), logits(x_adv), y) + regulariser

A recipe of a paper is a choice of the parts, never a loop of its own. Choices
that implementations make silently are made here once:

* The attack sees the evaluation view of the current weights: frozen batch
  statistics and no dropout. It runs outside `jax.grad`, so nothing is
  differentiated through it.
* Batch statistics are updated by the forward passes of the loss alone, never by
  the attack, a regulariser or a perturbation of the weights: with both branches
  by the clean one, then by the adversarial one.
* What changes from step to step (a radius that grows, a source that is drawn)
  is a number that the caller computes from `state.step` and `state.key` and
  builds the parts with; it compiles nothing anew.

An attack of k steps makes a training step of exactly k + 1 gradients. Build it
with `criterion=criteria.never`, as `defences.adversaries` does, so that every
row spends the whole budget.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxadv import engine, losses, train_state, types

Array = jax.Array
# "image" [B, ...] in the bounds; "label" [B], or soft labels [B, C]; and
# "target" where the loss wants something else than the label: any B rows.
Batch = dict[str, Any]
# What the attack is told about a batch: `(logits_fn, key, batch) -> y`.
AdversaryTarget = Callable[[types.LogitsFn, Array, Batch], types.PyTree]
Augment = Callable[[Array, Batch], Batch]
# The training view of the current weights, `x[B, ...] -> logits[B, C]`: batch
# statistics of `x` itself, and the same dropout at every call.
View = Callable[[Array], Array]
# A term of the loss that needs input gradients or pairs of inputs:
# `(view, key, x[B, ...], label) -> []`.
Regulariser = Callable[[View, Array, Array, Array], Array]
# Where the gradient is taken: `(objective, key, params) -> params`, with
# `objective(params) -> []` the loss of this batch.
PerturbWeights = Callable[
  [Callable[[types.PyTree], Array], Array, types.PyTree], types.PyTree
]


class RobustLoss(NamedTuple):
  """What training makes small, and which forward passes it needs.

  Attributes:
    loss_fn: `(clean_logits[C], adv_logits[C], y) -> []` for ONE example. The
      logits of a branch that is not asked for are None.
    clean: Whether it reads the clean logits.
    adversarial: Whether it reads the adversarial ones; else nothing is
      attacked.
    target_fn: `(x, x_adv, y) -> y`: what `loss_fn` wants where that depends on
      the perturbation of ONE example.
  """

  loss_fn: Callable[[Any, Any, types.PyTree], Array]
  clean: bool
  adversarial: bool
  target_fn: Callable[[Array, Array, types.PyTree], types.PyTree] | None = None


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


def hard_labels(logits_fn: types.LogitsFn, key: Array, batch: Batch) -> Array:
  """The attack drives away from the label, of mixed ones from the largest.

  For attacks whose loss or criterion wants an integer, with mixup and CutMix.
  """
  label = labels(logits_fn, key, batch)
  return jnp.argmax(label, axis=-1) if label.ndim > 1 else label


def predictions(logits_fn: types.LogitsFn, key: Array, batch: Batch) -> Array:
  """The attack drives away from the model's own probabilities [B, C].

  One more forward pass. For attacks that maximise `losses.kl_divergence`, as
  that of TRADES does.
  """
  x = batch["image"]
  return jax.nn.softmax(logits_fn(jax.random.split(key, len(x)), x))


class Metrics(NamedTuple):
  """Means over the batch, before the update.

  Attributes:
    loss: The robust loss and the regulariser, at the weights where the gradient
      was taken [].
    accuracy: Of the adversarial inputs, or of the clean ones where nothing is
      attacked []; of soft labels the largest counts.
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
  regulariser: Regulariser | None = None,
  perturb_weights: PerturbWeights | None = None,
) -> tuple[train_state.TrainState, Metrics]:
  """One step of (adversarial) training; pure, so jit it and donate `state`.

  Args:
    state: Weights, optimiser and key.
    batch: "image" [B, ...], "label" and, for some losses, "target".
    train_apply: The training view of the network.
    robust_loss: What to minimise.
    attack: Makes the adversarial branch, where the loss has one.
    adversary_target: What the attack is given as `y`.
    augment: `(key, batch) -> batch`, before anything else.
    regulariser: Added to the loss; sees the clean inputs and their labels.
    perturb_weights: Moves the weights to where the gradient is taken, which is
      then applied to the weights as they were.

  Returns:
    The next state and the metrics of this batch.

  Raises:
    ValueError: the loss has an adversarial branch and there is no attack, or
      one that cannot be told the mixed labels of the batch.
  """
  keys = jax.random.split(jax.random.fold_in(state.key, state.step), 6)
  key_augment, key_target, key_attack, key_model, key_term, key_weights = keys
  if augment is not None:
    batch = augment(key_augment, batch)
  x, y = batch["image"], loss_target(batch)
  x_adv = None
  if robust_loss.adversarial:
    logits_fn = state.logits_fn()
    target = adversary_target(logits_fn, key_target, batch)
    with _explained(batch["label"]):
      x_adv = engine.run(_required(attack), logits_fn, key_attack, x, target)
    if robust_loss.target_fn is not None:
      y = jax.vmap(robust_loss.target_fn)(x, x_adv, y)
  branches = (x if robust_loss.clean else None, x_adv)

  def objective(params):
    clean, adv, batch_stats = _forward(
      train_apply, state, params, key_model, branches
    )
    loss = jnp.mean(jax.vmap(robust_loss.loss_fn)(clean, adv, y))
    if regulariser is not None:
      view = _view(train_apply, state, params, key_model)
      loss = loss + regulariser(view, key_term, x, batch["label"])
    return loss, (clean if adv is None else adv, batch_stats)

  params = state.params
  if perturb_weights is not None:
    params = perturb_weights(lambda p: objective(p)[0], key_weights, params)
  (loss, (logits, batch_stats)), grads = jax.value_and_grad(
    objective, has_aux=True
  )(params)
  metrics = Metrics(loss, accuracy(logits, batch["label"]))
  return state.update(grads, batch_stats), metrics


def loss_target(batch: Batch) -> types.PyTree:
  """What the loss is given as `y`: the target, or else the label."""
  return batch["target"] if "target" in batch else batch["label"]


def _required(attack: types.Attack | None) -> types.Attack:
  if attack is None:
    raise ValueError(
      "attack must be given: robust_loss has an adversarial branch; "
      "`training.standard` has none"
    )
  return attack


@contextlib.contextmanager
def _explained(label: Array) -> Iterator[None]:
  """Names mixed labels where an attack fails to be traced with them."""
  try:
    yield
  except (IndexError, TypeError, ValueError) as error:
    if label.ndim == 1:
      raise
    raise ValueError(
      f"the attack fails with mixed labels of shape {label.shape} ({error}); "
      "if its loss or its criterion wants integers, give "
      "adversary_target=training.hard_labels, or leave out mixup and CutMix"
    ) from error


def integer_label(y: Array, name: str) -> Array:
  """The label of ONE example, for a part that is called so.

  Raises:
    ValueError: it is no integer but a mixture.
  """
  if jnp.ndim(y) or not jnp.issubdtype(jnp.result_type(y), jnp.integer):
    raise ValueError(
      f"{name} needs integer labels, got labels of shape {jnp.shape(y)} and "
      f"dtype {jnp.result_type(y)}: leave out mixup, CutMix and label smoothing"
    )
  return y


def accuracy(logits: Array, label: Array) -> Array:
  """The share of right answers []; logits that are not finite are none.

  Args:
    logits: `[B, C]`, or `[B, K, C]` of K members, whose mean accuracy it is.
    label: `[B]`, or soft labels `[B, C]`, of which the largest counts.
  """
  if label.ndim > 1:
    label = jnp.argmax(label, axis=-1)
  answer = jax.vmap(lambda z, y: jnp.argmax(z, axis=-1) == y)(logits, label)
  return jnp.mean(answer & jnp.isfinite(jnp.max(logits, axis=-1)))


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


def _view(train_apply, state, params, key) -> View:
  variables = state.replace(params=params).variables
  # The dropout of the clean branch, whose pass the compiler then shares.
  key = jax.random.fold_in(key, 0)
  return lambda x: train_apply(variables, key, x)[0]
