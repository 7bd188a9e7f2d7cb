"""One question to the model for a batch, and how its answer is read.

Attacks call the model through these functions only, so that every loss and
criterion stays a function of ONE example and every kernel can be wrapped.

A row has one key, and three sorts of keys are made of it, which never meet:
`step_keys` for the model, `start_keys` for what an attack draws before its
first step, `own_keys` for what it draws later. A randomised model may split its
key as it likes and still draws nothing that the attack has drawn.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxadv import types

Array = jax.Array

# Numbers that no count of steps reaches, for the keys that are not the model's.
_START = 0x73746172
_OWN = 0x6F776E00
# Draws of a randomised model are asked for together up to so many rows, and
# gradients of classes up to so many: beyond, only memory would grow.
_ROWS, _CLASSES = 128, 10


class Samples(NamedTuple):
  """Several answers of a randomised model to each row: `[n, B, ...]`.

  A loss of samples is their mean loss (expectation over transformation); a
  criterion is asked about their mean probabilities.
  """

  outputs: types.PyTree


class Answer(NamedTuple):
  """The model's outputs at a batch, the loss [B] and its input gradient."""

  outputs: types.PyTree
  loss: Array
  grad: Array


class Jacobian(NamedTuple):
  """Outputs, logits [B, C], chosen classes [B, K], gradients [B, K, ...].

  Of a randomised model the logits are those of its mean probabilities.
  """

  outputs: types.PyTree
  logits: Array
  classes: Array
  grads: Array


def step_keys(keys: Array, count: Array) -> Array:
  """The model's keys in question `count[B]` of rows with `keys[B]`."""
  return jax.vmap(jax.random.fold_in)(keys, count)


def start_keys(keys: Array) -> Array:
  """The keys of rows with `keys[B]` for random starts."""
  return jax.vmap(jax.random.fold_in, (0, None))(keys, _START)


def own_keys(keys: Array, count: Array) -> Array:
  """The attack's keys in step `count[B]` of rows with `keys[B]`."""
  own = jax.vmap(jax.random.fold_in, (0, None))(keys, _OWN)
  return jax.vmap(jax.random.fold_in)(own, count)


def loss(
  loss_fn: types.LossFn, outputs: types.PyTree, y: types.PyTree
) -> Array:
  """The loss of each row [B]."""
  if isinstance(outputs, Samples):
    per_sample = jax.vmap(jax.vmap(loss_fn), in_axes=(0, None))
    return jnp.mean(per_sample(outputs.outputs, y), axis=0)
  return jax.vmap(loss_fn)(outputs, y)


def satisfied(
  criterion: types.Criterion, outputs: types.PyTree, y: types.PyTree
) -> Array:
  """Whether the criterion holds for each row [B]."""
  return jax.vmap(criterion)(mean_logits(outputs), y)


def mean_logits(outputs: types.PyTree) -> types.PyTree:
  """The logits of each row; of samples, of their mean probabilities."""
  if isinstance(outputs, Samples):
    return jax.tree.map(_log_mean_probability, outputs.outputs)
  return outputs


def likeliest_wrong(
  outputs: types.PyTree, label: Array, num_targets: int
) -> Array:
  """The classes of largest logit other than the label, in order [B, T].

  Raises:
    ValueError: the model has too few classes.
  """
  logits = mean_logits(outputs)
  num_classes = logits.shape[-1]
  if num_targets > num_classes - 1:
    raise ValueError(
      f"num_targets must be at most {num_classes - 1} for a model of "
      f"{num_classes} classes, got num_targets={num_targets}"
    )
  is_label = jnp.arange(num_classes)[None] == label[:, None]
  wrong = jnp.where(is_label, -jnp.inf, logits)
  return jax.lax.top_k(wrong, num_targets)[1].astype(jnp.int32)


def _log_mean_probability(logits: Array) -> Array:
  mean = jax.nn.logsumexp(jax.nn.log_softmax(logits), axis=0)
  return mean - jnp.log(logits.shape[0])


def outputs(logits_fn: types.LogitsFn, keys: Array, x: Array) -> types.PyTree:
  """Asks for the outputs alone: one forward pass."""
  return logits_fn(keys, x)


def loss_and_gradient(
  logits_fn: types.LogitsFn,
  loss_fn: types.LossFn,
  keys: Array,
  x: Array,
  y: types.PyTree,
) -> Answer:
  """Asks for the loss of each row and its gradient in the input.

  One forward and one backward pass: rows are independent, so the gradient of
  the sum holds each row's own. Entries that are not finite count as zero, or
  one overflow would turn the whole input into NaN.
  """

  def ask(logits_fn: types.LogitsFn, keys: Array) -> Answer:
    def total(x: Array):
      answer = logits_fn(keys, x)
      per_row = loss(loss_fn, answer, y)
      return jnp.sum(per_row), (answer, per_row)

    grad, (answer, per_row) = jax.grad(total, has_aux=True)(x)
    return Answer(answer, per_row, grad)

  return _finite(_mean_over_draws(ask, logits_fn, keys))


def gradients(
  logits_fn: types.LogitsFn,
  losses_fn: Callable[[Array, types.PyTree], Array],
  keys: Array,
  x: Array,
  y: types.PyTree,
) -> Answer:
  """Asks for several losses of each row and the gradient of each.

  As `loss_and_gradient`, with `losses_fn` giving K losses of ONE example: one
  forward pass and K backward passes.

  Returns:
    The outputs, the losses [B, K] and their gradients [B, K, ...].
  """

  def ask(logits_fn: types.LogitsFn, keys: Array) -> Answer:
    def per_row(x: Array):
      answer = logits_fn(keys, x)
      return loss(losses_fn, answer, y), answer

    values, pull_back, answer = jax.vjp(per_row, x, has_aux=True)

    def row_grads(one_hot: Array) -> Array:
      return pull_back(jnp.broadcast_to(one_hot[None], values.shape))[0]

    one_hots = jnp.eye(values.shape[1], dtype=values.dtype)
    grads = _in_parts(row_grads, one_hots, _CLASSES)
    return Answer(answer, values, jnp.moveaxis(grads, 0, 1))

  return _finite(_mean_over_draws(ask, logits_fn, keys))


def _mean_over_draws(
  ask: Callable[[types.LogitsFn, Array], Answer],
  logits_fn: types.LogitsFn,
  keys: Array,
) -> Answer:
  """The answer; of samples, means of those to each draw.

  A loss of samples is a mean, so each draw has its own backward pass and the
  activations of one need not wait for the others.
  """
  if not isinstance(logits_fn, Sampled):
    return ask(logits_fn, keys)
  model = logits_fn.logits_fn

  def each(keys: Array) -> Answer:
    return _mean_over_draws(ask, model, keys)

  answer = _in_parts(each, logits_fn.keys(keys), _draws_at_once(keys))
  return Answer(
    Samples(answer.outputs),
    jnp.mean(answer.loss, axis=0),
    jnp.mean(answer.grad, axis=0),
  )


def _finite(answer: Answer) -> Answer:
  grad = answer.grad
  return answer._replace(grad=jnp.where(jnp.isfinite(grad), grad, 0.0))


def _draws_at_once(keys: Array) -> int:
  return max(1, _ROWS // len(keys))


def _in_parts(
  fun: Callable[[Array], types.PyTree], several: Array, at_once: int
) -> types.PyTree:
  """`vmap` over the first axis, `at_once` in memory together."""
  if len(several) <= at_once:
    return jax.vmap(fun)(several)
  return jax.lax.map(fun, several, batch_size=at_once)


def jacobian(
  logits_fn: types.LogitsFn,
  keys: Array,
  x: Array,
  classes_fn: Callable[[Array], Array],
) -> Jacobian:
  """Asks for the logits and the input gradients of some of them.

  One forward pass and one backward pass per class. Entries that are not finite
  count as zero.

  Args:
    logits_fn: The model.
    keys: One key per row [B].
    x: Inputs [B, ...].
    classes_fn: Chooses the classes [K] from the logits [C] of ONE example.

  Returns:
    The outputs, their logits [B, C], the classes [B, K] and their gradients
    [B, K, ...].
  """

  def ask(x: Array):
    answer = logits_fn(keys, x)
    return mean_logits(answer), answer

  logits, pull_back, answer = jax.vjp(ask, x, has_aux=True)
  classes = jax.vmap(classes_fn)(logits)

  def row_grads(column: Array) -> Array:
    one_hot = jax.nn.one_hot(column, logits.shape[-1], dtype=logits.dtype)
    return pull_back(one_hot)[0]

  columns = jnp.moveaxis(classes, 1, 0)
  grads = jnp.moveaxis(_in_parts(row_grads, columns, _CLASSES), 0, 1)
  finite = jnp.where(jnp.isfinite(grads), grads, 0.0)
  return Jacobian(answer, logits, classes, finite)


def choose(rows: Array, new: types.PyTree, old: types.PyTree) -> types.PyTree:
  """`new` in the rows [B] that are True, `old` in the others.

  The types are those of `old`, so what a loop carries keeps its own whatever
  the types of hyperparameters and weights.
  """

  def pick(a, b):
    if a is b:
      return a
    if a.dtype != b.dtype:
      a = a.astype(b.dtype)
    return jnp.where(jnp.reshape(rows, rows.shape + (1,) * (a.ndim - 1)), a, b)

  return jax.tree.map(pick, new, old)


def redirected(
  logits_fn: types.LogitsFn, rows: Array, point: Array
) -> types.LogitsFn:
  """A model asked about `point` instead, in the rows [B] that are True.

  Lets a combinator put a question of its own to the calls that the wrapped
  kernel makes; the outputs that the kernel's step hands back are the answer.
  """
  if isinstance(logits_fn, Sampled):
    model = redirected(logits_fn.logits_fn, rows, point)
    return Sampled(model, logits_fn.num_samples)

  def ask(keys: Array, x: Array) -> types.PyTree:
    return logits_fn(keys, choose(rows, point, x))

  return ask


class Sampled:
  """A randomised model asked `num_samples` times with fresh keys.

  Where the draws do not fit into memory together, they are asked for in parts,
  and a Jacobian asks for each a second time: its activations are not kept.
  """

  def __init__(self, logits_fn: types.LogitsFn, num_samples: int):
    self.logits_fn = logits_fn
    self.num_samples = num_samples

  def __call__(self, keys: Array, x: Array) -> Samples:
    def ask(keys: Array) -> types.PyTree:
      return self.logits_fn(keys, x)

    at_once = _draws_at_once(keys)
    if self.num_samples > at_once:
      ask = jax.checkpoint(ask)
    return Samples(_in_parts(ask, self.keys(keys), at_once))

  def keys(self, keys: Array) -> Array:
    """The keys of each draw [num_samples, B]."""
    return jax.vmap(
      lambda draw: jax.vmap(jax.random.fold_in, (0, None))(keys, draw)
    )(jnp.arange(self.num_samples))
