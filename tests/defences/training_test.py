"""What a training step costs, attacks and minimises."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxadv import (
  attacks,
  balls,
  criteria,
  engine,
  losses,
  models,
  train_state,
)
from jaxadv.defences import adversaries, training
from tests.defences import training_cases as cases


def test_madry_is_the_step_written_by_hand():
  state, batch, attack = cases.state(), cases.batch(), cases.attack(3)
  new, metrics = cases.step(
    state, batch, robust_loss=training.madry, attack=attack
  )
  keys = jax.random.split(jax.random.fold_in(state.key, 0), 4)
  logits_fn = models.bind(cases.MODULE.apply, state.variables)
  x_adv = engine.run(attack, logits_fn, keys[2], batch["image"], batch["label"])
  assert float(jnp.max(jnp.abs(x_adv - batch["image"]))) > 0.05

  def objective(params):
    logits = cases.MODULE.apply({"params": params}, x_adv)
    return optax.softmax_cross_entropy_with_integer_labels(
      logits, batch["label"]
    ).mean()

  loss, grads = jax.value_and_grad(objective)(state.params)
  by_hand = jax.tree.map(lambda p, g: p - 0.5 * g, state.params, grads)
  cases.assert_trees_equal(new.params, by_hand, rtol=1e-6)
  np.testing.assert_allclose(metrics.loss, loss, rtol=1e-6)
  logits = cases.MODULE.apply(state.variables, x_adv)
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
    return self.identity(cases.MODULE.apply(variables, x))

  def train_apply(self, variables, key, x):
    del key
    return self.apply(variables, x), {}


@pytest.mark.parametrize(
  ("robust_loss", "num_steps", "gradients"),
  [
    (training.standard, 5, 1),
    (training.madry, 1, 2),
    (training.madry, 5, 6),
    # Two branches, differentiated together, are two more.
    (cases.MIXTURE, 5, 7),
  ],
)
def test_costs_no_more_gradients_than_it_needs(
  robust_loss, num_steps, gradients
):
  counter = _Counter()
  state = cases.state().replace(apply_fn=counter.apply)
  step = jax.jit(
    lambda state, batch: training.train_step(
      state,
      batch,
      train_apply=counter.train_apply,
      robust_loss=robust_loss,
      attack=cases.attack(num_steps),
    )
  )
  jax.block_until_ready(step(state, cases.batch()))
  jax.effects_barrier()
  assert counter.counts == {"forward": gradients, "backward": gradients}


def _consistency(clean, adv, y):
  smooth = losses.kl_divergence(adv, jax.nn.softmax(clean))
  return losses.cross_entropy(clean, y) + 6.0 * smooth


def test_an_adversary_of_soft_targets_fits():
  loss = training.RobustLoss(_consistency, clean=True, adversarial=True)
  new, metrics = cases.step(
    cases.state(),
    cases.batch(),
    robust_loss=loss,
    attack=cases.attack(2, loss_fn=losses.kl_divergence),
    adversary_target=training.predictions,
  )
  assert np.isfinite(metrics.loss)
  changed = jax.tree.map(
    lambda a, b: bool(np.any(np.asarray(a) != np.asarray(b))),
    new.params,
    cases.state().params,
  )
  assert all(jax.tree.leaves(changed))


@pytest.mark.parametrize(
  "options",
  [{"loss_fn": losses.margin}, {"criterion": criteria.misclassified}],
)
def test_mixed_labels_and_an_attack_that_wants_integers(options):
  batch = cases.batch()
  batch["label"] = 0.7 * jax.nn.one_hot(batch["label"], 3) + 0.1
  pgd = attacks.pgd(balls.Linf(0.1), num_steps=2, step_size=0.05, **options)
  with pytest.raises(
    ValueError, match=r"mixed labels of shape \(12, 3\).*hard_"
  ):
    cases.step(cases.state(), batch, robust_loss=training.madry, attack=pgd)
  _, metrics = cases.step(
    cases.state(),
    batch,
    robust_loss=training.madry,
    attack=pgd,
    adversary_target=training.hard_labels,
  )
  assert np.isfinite(metrics.loss)


def test_hard_labels_are_the_largest():
  for label in ([0, 2], [[0.5, 0.2, 0.3], [0.3, 0.3, 0.4]]):
    found = training.hard_labels(None, None, {"label": jnp.array(label)})
    np.testing.assert_array_equal(found, [0, 2])


def test_mixed_labels_and_a_friendly_adversary():
  batch = cases.batch()
  batch["label"] = jax.nn.one_hot(batch["label"], 3)
  friendly = adversaries.friendly(cases.attack(2))
  with pytest.raises(ValueError, match="mixed labels"):
    cases.step(
      cases.state(), batch, robust_loss=training.madry, attack=friendly
    )


def test_the_target_is_what_the_loss_reads_and_the_label_what_is_attacked():
  state, batch, attack = cases.state(), cases.batch(), cases.attack(2)
  target = jax.nn.one_hot((batch["label"] + 1) % 3, 3)
  _, metrics = cases.step(
    state,
    batch | {"target": target},
    robust_loss=training.madry,
    attack=attack,
  )
  key = jax.random.split(jax.random.fold_in(state.key, 0), 4)[2]
  x_adv = engine.run(
    attack, state.logits_fn(), key, batch["image"], batch["label"]
  )
  logits = cases.MODULE.apply(state.variables, x_adv)
  expected = optax.softmax_cross_entropy(logits, target).mean()
  np.testing.assert_allclose(metrics.loss, expected, rtol=1e-5)
  right = np.argmax(logits, axis=-1) == batch["label"]
  np.testing.assert_allclose(metrics.accuracy, right.mean(), rtol=1e-6)


def test_a_target_may_depend_on_the_perturbation():
  state, batch, attack = cases.state(), cases.batch(), cases.attack(2)
  loss = training.RobustLoss(
    lambda clean, adv, y: y,
    clean=False,
    adversarial=True,
    target_fn=lambda x, x_adv, y: jnp.max(jnp.abs(x_adv - x)) + y,
  )
  _, metrics = cases.step(state, batch, robust_loss=loss, attack=attack)
  key = jax.random.split(jax.random.fold_in(state.key, 0), 4)[2]
  x_adv = engine.run(
    attack, state.logits_fn(), key, batch["image"], batch["label"]
  )
  sizes = np.abs(x_adv - batch["image"]).max(axis=(1, 2, 3))
  expected = np.mean(sizes + np.asarray(batch["label"]))
  np.testing.assert_allclose(metrics.loss, expected, rtol=1e-5)


def test_predictions_are_those_of_the_evaluation_view():
  state, batch = cases.state(), cases.batch()
  found = training.predictions(state.logits_fn(), jax.random.key(0), batch)
  expected = jax.nn.softmax(cases.MODULE.apply(state.variables, batch["image"]))
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


# Minus infinity is a fair logit of a class that is ruled out.
@pytest.mark.parametrize(
  ("bad", "right"), [(np.nan, 1), (np.inf, 1), (-np.inf, 2)]
)
def test_logits_that_decide_nothing_are_no_right_answers(bad, right):
  logits = jnp.array([[bad, 0.0], [0.0, bad], [1.0, 0.0], [bad, bad]])
  label = jnp.array([0, 0, 0, 0])
  assert float(training.accuracy(logits, label)) == right / 4
  members = jnp.stack([logits, jnp.zeros_like(logits)], axis=1)
  assert float(training.accuracy(members, label)) == (right + 4) / 8


@pytest.mark.parametrize(
  "recipe",
  [
    {"robust_loss": training.standard},
    {"robust_loss": training.madry, "attack": cases.attack(3)},
  ],
)
def test_loss_falls_with_a_donated_state(recipe):
  batch = cases.batch(64)
  apply_fn = train_state.train_apply(cases.MODULE)
  step = jax.jit(
    lambda state, batch: training.train_step(
      state, batch, train_apply=apply_fn, **recipe
    ),
    donate_argnums=0,
  )
  state, found = cases.state(), []
  for _ in range(60):
    state, metrics = step(state, batch)
    found.append(float(metrics.loss))
  assert found[-1] < 0.7 * found[0]


def test_an_adversarial_loss_needs_an_attack():
  with pytest.raises(ValueError, match="attack must be given"):
    cases.step(cases.state(), cases.batch(), robust_loss=training.madry)
