"""Free adversarial training: the gradient of weights and inputs at once.

Every batch is replayed m times. A replay makes one backward pass, from which
both the weights and the perturbation take their step, so an epoch costs what m
epochs of plain training cost and m updates are made per batch. The perturbation
stays from batch to batch, row for row.

Unlike `training.train_step`, the perturbation follows the training view of the
network, since there is one pass for both.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxadv import checks, losses, train_state, types
from jaxadv.defences import training

Array = jax.Array


def start(state: train_state.TrainState, x: Any) -> train_state.TrainState:
  """The state with a perturbation of zeros for batches shaped as `x` [B, ...].

  It is part of the state, so a checkpoint holds it.
  """
  return state.replace(carry=jnp.zeros(x.shape, x.dtype))


def train_step(
  state: train_state.TrainState,
  batch: training.Batch,
  *,
  train_apply: train_state.TrainApply,
  ball: types.Ball,
  step_size: types.Scalar | None = None,
  num_replays: int = 8,
  augment: training.Augment | None = None,
  bounds: tuple[types.Scalar, types.Scalar] = (0.0, 1.0),
) -> tuple[train_state.TrainState, training.Metrics]:
  """All replays of one batch; pure, so jit it and donate `state`.

  A replay, from weights w and perturbation d: with the gradients of the mean
  cross-entropy at `x + d`, `w <- optimiser(w)` and `d <- P(d + step_size *
  steepest)`, P the projection onto ball and bounds. A batch begins with the
  perturbation of the last one, projected for its own inputs. The optimiser is
  asked `num_replays` times per batch, so that is how its schedule counts;
  `state.step` counts batches.

  Args:
    state: From `start`.
    batch: "image" [B, ...] and "label", B the same for all batches.
    train_apply: The training view of the network.
    ball: The perturbation set.
    step_size: Length of a step; eps by default, as in the paper.
    num_replays: m, 8 for CIFAR-10 in the paper. Divide the epochs by it.
    augment: `(key, batch) -> batch`, once per batch.
    bounds: The range of inputs.

  Returns:
    The next state; the metrics of the last replay.

  Raises:
    ValueError: the state is not from `start`, or was for another batch.

  Reference: Shafahi et al., "Adversarial training for free!", 2019.
  """
  checks.num_steps(num_replays, "num_replays")
  checks.bounds(bounds)
  step_size = ball.eps if step_size is None else step_size
  key_augment, key_model = jax.random.split(
    jax.random.fold_in(state.key, state.step)
  )
  if augment is not None:
    batch = augment(key_augment, batch)
  x, label = batch["image"], batch["label"]
  y = training.loss_target(batch)
  _check_carry(state.carry, x)
  project = jax.vmap(ball.project_box)
  low, high = bounds[0] - x, bounds[1] - x

  def replay(state, key):
    def objective(params, delta):
      variables = state.replace(params=params).variables
      logits, batch_stats = train_apply(variables, key, x + delta)
      loss = jnp.mean(jax.vmap(losses.cross_entropy)(logits, y))
      return loss, (logits, batch_stats)

    (loss, (logits, batch_stats)), (grads, uphill) = jax.value_and_grad(
      objective, argnums=(0, 1), has_aux=True
    )(state.params, state.carry)
    uphill = jnp.where(jnp.isfinite(uphill), uphill, 0.0)
    delta = state.carry + step_size * jax.vmap(ball.steepest)(uphill)
    metrics = training.Metrics(loss, training.accuracy(logits, label))
    state = state.update(grads, batch_stats)
    return state.replace(carry=project(delta, low, high)), metrics

  first = state.replace(carry=project(state.carry, low, high))
  last, metrics = jax.lax.scan(
    replay, first, jax.random.split(key_model, num_replays)
  )
  last = last.replace(step=state.step + 1)
  return last, jax.tree.map(lambda values: values[-1], metrics)


def _check_carry(carry: Any, x: Array) -> None:
  if carry is None or carry.shape != x.shape:
    found = None if carry is None else carry.shape
    raise ValueError(
      f"state.carry must be a perturbation of shape {x.shape}, got {found}: "
      "begin with free.start(state, x) and keep the batch size"
    )
