import collections

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jaxadv import (
  attacks,
  balls,
  criteria,
  engine,
  losses,
  models,
  train_state,
)
from jaxadv.defences import training

_MODULE = models.MLP(features=(8,), num_classes=3)
_BALL = balls.Linf(0.1)
_SGD = optax.sgd(0.5)


def _attack(num_steps, **options):
  return attacks.pgd(
    _BALL,
    num_steps=num_steps,
    step_size=0.05,
    criterion=criteria.never,
    **options,
  )


def _batch(num_rows=12):
  rng = np.random.default_rng(0)
  image = rng.uniform(size=(num_rows, 2, 2, 1)).astype(np.float32)
  label = (image.sum(axis=(1, 2, 3)) > 2.0).astype(np.int32)
  return {"image": jnp.asarray(image), "label": jnp.asarray(label)}


def _state(module=_MODULE):
  x = _batch()["image"]
  return train_state.create(module, _SGD, jax.random.key(3), x)


def _step(state, batch, module=_MODULE, **options):
  apply_fn = train_state.train_apply(module)
  return jax.jit(
    lambda state, batch: training.train_step(
      state, batch, train_apply=apply_fn, **options
    )
  )(state, batch)


def _assert_trees_equal(a, b, **tolerance):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def test_madry_is_the_step_written_by_hand():
  state, batch, attack = _state(), _batch(), _attack(3)
  new, metrics = _step(state, batch, robust_loss=training.madry, attack=attack)
  keys = jax.random.split(jax.random.fold_in(state.key, 0), 4)
  logits_fn = models.bind(_MODULE.apply, state.variables)
  x_adv = engine.run(attack, logits_fn, keys[2], batch["image"], batch["label"])
  assert float(jnp.max(jnp.abs(x_adv - batch["image"]))) > 0.05

  def objective(params):
    logits = _MODULE.apply({"params": params}, x_adv)
    return optax.softmax_cross_entropy_with_integer_labels(
      logits, batch["label"]
    ).mean()

  loss, grads = jax.value_and_grad(objective)(state.params)
  by_hand = jax.tree.map(lambda p, g: p - 0.5 * g, state.params, grads)
  _assert_trees_equal(new.params, by_hand, rtol=1e-6)
  np.testing.assert_allclose(metrics.loss, loss, rtol=1e-6)
  logits = _MODULE.apply(state.variables, x_adv)
  right = np.argmax(logits, axis=-1) == batch["label"]
  np.testing.assert_allclose(metrics.accuracy, right.mean(), rtol=1e-6)
  assert int(new.step) == 1


class _Counter:
  """Counts the forward and backward passes through a network that ran."""

  def __init__(self):
    self.counts = collections.Counter()
    self.identity = jax.custom_vjp(lambda x: x)
    self.identity.defvjp(self._forward, self._backward)

  def _tick(self, name):
    jax.debug.callback(lambda: self.counts.update([name]))

  def _forward(self, x):
    self._tick("forward")
    return x, None

  def _backward(self, _, grad):
    self._tick("backward")
    return (grad,)

  def apply(self, variables, x):
    return self.identity(_MODULE.apply(variables, x))

  def train_apply(self, variables, key, x):
    del key
    return self.apply(variables, x), {}


def _fgsm_mixture(clean, adv, y):
  return losses.cross_entropy(clean, y) + losses.cross_entropy(adv, y)


_MIXTURE = training.RobustLoss(_fgsm_mixture, clean=True, adversarial=True)


@pytest.mark.parametrize(
  ("robust_loss", "num_steps", "gradients"),
  [
    (training.standard, 5, 1),
    (training.madry, 1, 2),
    (training.madry, 5, 6),
    # Two branches, differentiated together, are two more.
    (_MIXTURE, 5, 7),
  ],
)
def test_costs_no_more_gradients_than_it_needs(
  robust_loss, num_steps, gradients
):
  counter = _Counter()
  state = _state().replace(apply_fn=counter.apply)
  step = jax.jit(
    lambda state, batch: training.train_step(
      state,
      batch,
      train_apply=counter.train_apply,
      robust_loss=robust_loss,
      attack=_attack(num_steps),
    )
  )
  jax.block_until_ready(step(state, _batch()))
  jax.effects_barrier()
  assert counter.counts == {"forward": gradients, "backward": gradients}


class _Normalised(nn.Module):
  @nn.compact
  def __call__(self, x, train=False):
    x = nn.BatchNorm(use_running_average=not train)(x.reshape(len(x), -1))
    return nn.Dense(3)(x)


def test_attack_sees_frozen_statistics_and_leaves_them_alone():
  module, batch, attack = _Normalised(), _batch(), _attack(4)
  state = _state(module)
  new, _ = _step(
    state, batch, module, robust_loss=training.madry, attack=attack
  )
  key = jax.random.split(jax.random.fold_in(state.key, 0), 4)[2]
  frozen = models.bind(module.apply, state.variables)
  x_adv = engine.run(attack, frozen, key, batch["image"], batch["label"])
  _, once = train_state.train_apply(module)(state.variables, key, x_adv)
  _assert_trees_equal(new.batch_stats, once, rtol=1e-6)


def test_both_branches_update_statistics_clean_first():
  module, batch = _Normalised(), _batch()
  state = _state(module)
  new, _ = _step(state, batch, module, robust_loss=_MIXTURE, attack=_attack(2))
  key = jax.random.split(jax.random.fold_in(state.key, 0), 4)[2]
  x_adv = engine.run(
    _attack(2), state.logits_fn(), key, batch["image"], batch["label"]
  )
  apply_fn = train_state.train_apply(module)
  _, stats = apply_fn(state.variables, key, batch["image"])
  _, stats = apply_fn(state.variables | {"batch_stats": stats}, key, x_adv)
  _assert_trees_equal(new.batch_stats, stats, rtol=1e-6)


def _consistency(clean, adv, y):
  smooth = losses.kl_divergence(adv, jax.nn.softmax(clean))
  return losses.cross_entropy(clean, y) + 6.0 * smooth


def test_an_adversary_of_soft_targets_fits():
  loss = training.RobustLoss(_consistency, clean=True, adversarial=True)
  new, metrics = _step(
    _state(),
    _batch(),
    robust_loss=loss,
    attack=_attack(2, loss_fn=losses.kl_divergence),
    adversary_target=training.predictions,
  )
  assert np.isfinite(metrics.loss)
  changed = jax.tree.map(
    lambda a, b: bool(np.any(np.asarray(a) != np.asarray(b))),
    new.params,
    _state().params,
  )
  assert all(jax.tree.leaves(changed))


def test_the_target_is_what_the_loss_reads_and_the_label_what_is_attacked():
  state, batch, attack = _state(), _batch(), _attack(2)
  target = jax.nn.one_hot((batch["label"] + 1) % 3, 3)
  _, metrics = _step(
    state,
    batch | {"target": target},
    robust_loss=training.madry,
    attack=attack,
  )
  key = jax.random.split(jax.random.fold_in(state.key, 0), 4)[2]
  x_adv = engine.run(
    attack, state.logits_fn(), key, batch["image"], batch["label"]
  )
  logits = _MODULE.apply(state.variables, x_adv)
  expected = optax.softmax_cross_entropy(logits, target).mean()
  np.testing.assert_allclose(metrics.loss, expected, rtol=1e-5)
  right = np.argmax(logits, axis=-1) == batch["label"]
  np.testing.assert_allclose(metrics.accuracy, right.mean(), rtol=1e-6)


def test_a_target_may_depend_on_the_perturbation():
  state, batch, attack = _state(), _batch(), _attack(2)
  loss = training.RobustLoss(
    lambda clean, adv, y: y,
    clean=False,
    adversarial=True,
    target_fn=lambda x, x_adv, y: jnp.max(jnp.abs(x_adv - x)) + y,
  )
  _, metrics = _step(state, batch, robust_loss=loss, attack=attack)
  key = jax.random.split(jax.random.fold_in(state.key, 0), 4)[2]
  x_adv = engine.run(
    attack, state.logits_fn(), key, batch["image"], batch["label"]
  )
  sizes = np.abs(x_adv - batch["image"]).max(axis=(1, 2, 3))
  expected = np.mean(sizes + np.asarray(batch["label"]))
  np.testing.assert_allclose(metrics.loss, expected, rtol=1e-5)


def test_a_regulariser_joins_the_loss():
  module, batch = _Normalised(), _batch()
  state = _state(module)

  def squeeze(view, key, x, label):
    del key
    return 0.3 * jnp.mean(jnp.square(view(x))) + 0.0 * jnp.sum(label)

  new, metrics = _step(
    state, batch, module, robust_loss=training.standard, regulariser=squeeze
  )
  apply_fn = train_state.train_apply(module)

  @jax.jit
  def by_hand(params):
    logits, stats = apply_fn(
      state.variables | {"params": params}, state.key, batch["image"]
    )
    loss = optax.softmax_cross_entropy_with_integer_labels(
      logits, batch["label"]
    ).mean()
    return loss + 0.3 * jnp.mean(jnp.square(logits)), stats

  (loss, stats), grads = jax.value_and_grad(by_hand, has_aux=True)(state.params)
  np.testing.assert_allclose(metrics.loss, loss, rtol=1e-5)
  expected = jax.tree.map(lambda p, g: p - 0.5 * g, state.params, grads)
  _assert_trees_equal(new.params, expected, rtol=1e-4, atol=1e-6)
  # The regulariser's own pass leaves the statistics alone.
  _assert_trees_equal(new.batch_stats, stats, rtol=1e-6)


def test_perturbed_weights_lend_their_gradient_only():
  state, batch = _state(), _batch()
  seen = []

  def move(objective, key, params):
    del key
    seen.append(objective(params).shape)
    return jax.tree.map(lambda p: p + 0.1, params)

  new, metrics = _step(
    state, batch, robust_loss=training.standard, perturb_weights=move
  )
  assert seen == [()]

  def objective(params):
    logits = _MODULE.apply({"params": params}, batch["image"])
    return optax.softmax_cross_entropy_with_integer_labels(
      logits, batch["label"]
    ).mean()

  moved = jax.tree.map(lambda p: p + 0.1, state.params)
  loss, grads = jax.jit(jax.value_and_grad(objective))(moved)
  np.testing.assert_allclose(metrics.loss, loss, rtol=1e-5)
  expected = jax.tree.map(lambda p, g: p - 0.5 * g, state.params, grads)
  _assert_trees_equal(new.params, expected, rtol=1e-5, atol=1e-7)


def test_predictions_are_those_of_the_evaluation_view():
  state, batch = _state(), _batch()
  found = training.predictions(state.logits_fn(), jax.random.key(0), batch)
  expected = jax.nn.softmax(_MODULE.apply(state.variables, batch["image"]))
  np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_accuracy():
  logits = jnp.array([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0]])
  assert float(training.accuracy(logits, jnp.array([0, 0, 0]))) == (
    pytest.approx(2 / 3)
  )
  soft = jnp.array([[0.9, 0.1], [0.3, 0.7], [0.4, 0.6]])
  assert float(training.accuracy(logits, soft)) == pytest.approx(2 / 3)
  members = jnp.stack([logits, -logits], axis=1)
  assert float(training.accuracy(members, jnp.array([0, 0, 0]))) == 0.5


def test_augments_before_the_attack():
  black = lambda key, batch: {**batch, "image": 0 * batch["image"]}
  batch = _batch()
  new, _ = _step(
    _state(),
    batch,
    robust_loss=training.madry,
    attack=_attack(2),
    augment=black,
  )
  same, _ = _step(
    _state(),
    {**batch, "image": 0 * batch["image"]},
    robust_loss=training.madry,
    attack=_attack(2),
  )
  _assert_trees_equal(new.params, same.params)


@pytest.mark.parametrize(
  "recipe",
  [
    {"robust_loss": training.standard},
    {"robust_loss": training.madry, "attack": _attack(3)},
  ],
)
def test_loss_falls_with_a_donated_state(recipe):
  batch = _batch(64)
  apply_fn = train_state.train_apply(_MODULE)
  step = jax.jit(
    lambda state, batch: training.train_step(
      state, batch, train_apply=apply_fn, **recipe
    ),
    donate_argnums=0,
  )
  state, found = _state(), []
  for _ in range(60):
    state, metrics = step(state, batch)
    found.append(float(metrics.loss))
  assert found[-1] < 0.7 * found[0]


def test_an_adversarial_loss_needs_an_attack():
  with pytest.raises(ValueError, match="attack must be given"):
    _step(_state(), _batch(), robust_loss=training.madry)
