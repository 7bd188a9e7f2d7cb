"""The optional parts of a training step, and its batch statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxadv import engine, models, train_state
from jaxadv.defences import training
from tests.defences import training_cases as cases


def test_attack_sees_frozen_statistics_and_leaves_them_alone():
  module, batch, attack = cases.Normalised(), cases.batch(), cases.attack(4)
  state = cases.state(module)
  new, _ = cases.step(
    state, batch, module, robust_loss=training.madry, attack=attack
  )
  key = jax.random.split(jax.random.fold_in(state.key, 0), 4)[2]
  frozen = models.bind(module.apply, state.variables)
  x_adv = engine.run(attack, frozen, key, batch["image"], batch["label"])
  _, once = train_state.train_apply(module)(state.variables, key, x_adv)
  cases.assert_trees_equal(new.batch_stats, once, rtol=1e-6)


def test_both_branches_update_statistics_clean_first():
  module, batch = cases.Normalised(), cases.batch()
  state = cases.state(module)
  new, _ = cases.step(
    state, batch, module, robust_loss=cases.MIXTURE, attack=cases.attack(2)
  )
  key = jax.random.split(jax.random.fold_in(state.key, 0), 4)[2]
  x_adv = engine.run(
    cases.attack(2), state.logits_fn(), key, batch["image"], batch["label"]
  )
  apply_fn = train_state.train_apply(module)
  _, stats = apply_fn(state.variables, key, batch["image"])
  _, stats = apply_fn(state.variables | {"batch_stats": stats}, key, x_adv)
  cases.assert_trees_equal(new.batch_stats, stats, rtol=1e-6)


def test_a_regulariser_joins_the_loss():
  module, batch = cases.Normalised(), cases.batch()
  state = cases.state(module)

  def squeeze(view, key, x, label):
    del key
    return 0.3 * jnp.mean(jnp.square(view(x))) + 0.0 * jnp.sum(label)

  new, metrics = cases.step(
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
  cases.assert_trees_equal(new.params, expected, rtol=1e-4, atol=1e-6)
  # The regulariser's own pass leaves the statistics alone.
  cases.assert_trees_equal(new.batch_stats, stats, rtol=1e-6)


def test_perturbed_weights_lend_their_gradient_only():
  state, batch = cases.state(), cases.batch()
  seen = []

  def move(objective, key, params):
    del key
    seen.append(objective(params).shape)
    return jax.tree.map(lambda p: p + 0.1, params)

  new, metrics = cases.step(
    state, batch, robust_loss=training.standard, perturb_weights=move
  )
  assert seen == [()]

  def objective(params):
    logits = cases.MODULE.apply({"params": params}, batch["image"])
    return optax.softmax_cross_entropy_with_integer_labels(
      logits, batch["label"]
    ).mean()

  moved = jax.tree.map(lambda p: p + 0.1, state.params)
  loss, grads = jax.jit(jax.value_and_grad(objective))(moved)
  np.testing.assert_allclose(metrics.loss, loss, rtol=1e-5)
  expected = jax.tree.map(lambda p, g: p - 0.5 * g, state.params, grads)
  cases.assert_trees_equal(new.params, expected, rtol=1e-5, atol=1e-7)


def test_augments_before_the_attack():
  black = lambda key, batch: {**batch, "image": 0 * batch["image"]}
  batch = cases.batch()
  new, _ = cases.step(
    cases.state(),
    batch,
    robust_loss=training.madry,
    attack=cases.attack(2),
    augment=black,
  )
  same, _ = cases.step(
    cases.state(),
    {**batch, "image": 0 * batch["image"]},
    robust_loss=training.madry,
    attack=cases.attack(2),
  )
  cases.assert_trees_equal(new.params, same.params)
