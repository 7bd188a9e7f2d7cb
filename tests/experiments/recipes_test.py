"""Every defence of the table makes steps, and stopped runs lose nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import fitting, recipe_steps, recipes, validation
from jaxadv import balls, data, losses, models, train_state
from jaxadv.defences import adversaries, training
from tests.experiments import training_cases as cases

_EXAMPLES = data.first(data.load("digits").train, 96)
_PLAIN = models.MLP(features=(8,))
# One of each family that keeps something of its own from step to step.
_FAMILIES = (
  *("free", "trades_awp", "fat", "ensemble_at", "adp", "null_class", "clp"),
)


def _module(name):
  return recipes.RECIPES[name].module(_PLAIN, 10)


def _state(plan):
  x = data.batch(_EXAMPLES, range(32))["image"]
  state = train_state.create(
    _module(plan.name), optax.adam(0.01), jax.random.key(0), x[:1]
  )
  return recipe_steps.start(plan, state, x)


def _helpers(name):
  def one(seed):
    x = data.batch(_EXAMPLES, [0])["image"]
    variables = _PLAIN.init(jax.random.key(seed), x)
    return models.bind(_PLAIN.apply, variables)

  return tuple(one(seed) for seed in range(recipes.RECIPES[name].helpers))


def _step_fn(plan):
  apply_fn = train_state.train_apply(_module(plan.name))
  return recipe_steps.step_fn(plan, apply_fn, _helpers(plan.name))


def _batch():
  batch = data.batch(_EXAMPLES, range(32))
  return {name: jnp.asarray(batch[name]) for name in ("image", "label")}


@pytest.mark.parametrize("name", list(recipes.RECIPES))
def test_every_recipe_makes_a_step(name):
  plan = cases.plan(name)
  state = _state(plan)
  after, metrics = jax.eval_shape(_step_fn(plan), state, _batch())
  shapes = [
    [(jnp.shape(leaf), leaf.dtype) for leaf in jax.tree.leaves(tree)]
    for tree in (state, after)
  ]
  assert shapes[0] == shapes[1]
  assert metrics.loss.shape == metrics.accuracy.shape == ()


def test_the_number_is_the_paper_s_unless_it_is_given():
  assert cases.plan("trades").tuned() == 6.0
  assert cases.plan("trades", number=2.0).tuned() == 2.0
  assert cases.plan("pgd").tuned() == 0.0
  assert cases.plan("free", number=3).num_updates() == 27
  assert cases.plan("trades").num_updates() == 9


def test_the_radius_grows_to_eps():
  """FGSM moves every pixel by the radius of the step, where bounds allow."""
  plan = cases.plan("n_fgsm", number=0.0, eps=0.3)
  seen = []

  def apply_fn(variables, key, x):
    jax.debug.callback(lambda x: seen.append(np.asarray(x)), x)
    return train_state.train_apply(_module("n_fgsm"))(variables, key, x)

  batch = {"image": jnp.full((32, 8, 8, 1), 0.5), "label": _batch()["label"]}
  state = _state(plan)
  for step in range(4):
    step_fn = recipe_steps.step_fn(plan, apply_fn)
    step_fn(state.replace(step=jnp.int32(step)), batch)
  jax.effects_barrier()
  radii = [np.abs(x - 0.5).max() for x in seen]
  np.testing.assert_allclose(radii, [0.1, 0.2, 0.3, 0.3], atol=1e-6)


def test_a_recipe_is_what_its_paper_composes():
  plan = cases.plan("trades", warmup_steps=0.0)
  state, batch = _state(plan), _batch()
  ours = _step_fn(plan)(state, batch)[1].loss

  def trades(clean, adv, y):
    p, q = jax.nn.softmax(clean), jax.nn.log_softmax(adv)
    divergence = jnp.sum(p * (jax.nn.log_softmax(clean) - q))
    return losses.cross_entropy(clean, y) + 6.0 * divergence

  theirs = training.train_step(
    state,
    batch,
    train_apply=train_state.train_apply(_PLAIN),
    robust_loss=training.RobustLoss(trades, clean=True, adversarial=True),
    attack=adversaries.trades(balls.Linf(0.1), num_steps=2, step_size=0.125),
    adversary_target=training.predictions,
  )[1].loss
  np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_gaussian_noise_is_not_clipped_as_in_its_paper():
  seen = []

  def apply_fn(variables, key, x):
    jax.debug.callback(lambda x: seen.append(np.asarray(x)), x)
    return train_state.train_apply(_module("gaussian"))(variables, key, x)

  plan = cases.plan("gaussian", number=0.25)
  recipe_steps.step_fn(plan, apply_fn)(_state(plan), _batch())
  jax.effects_barrier()
  assert seen[0].min() < -0.3 and seen[0].max() > 1.3


def _fit(place, name, stop=lambda: False):
  plan = cases.plan(name)
  return fitting.fit(
    place,
    _state(plan),
    _step_fn(plan),
    lambda variables: {"score": 0.0},
    _EXAMPLES,
    fitting.Schedule(num_epochs=3, batch_size=32, seed=0),
    stop,
  )


@pytest.mark.parametrize(
  "name",
  [
    pytest.param(name, marks=[] if name == "free" else pytest.mark.slow)
    for name in _FAMILIES
  ],
)
def test_stopped_runs_end_with_the_same_bits(name, tmp_path):
  whole = _fit(tmp_path / "whole", name)
  calls = iter(range(1, 5))
  with pytest.raises(fitting.Preempted):
    _fit(tmp_path / "parts", name, stop=lambda: next(calls) == 4)
  parts = _fit(tmp_path / "parts", name)
  states = [
    each.state.replace(key=jax.random.key_data(each.state.key))
    for each in (whole, parts)
  ]
  for one, other in zip(*map(jax.tree.leaves, states), strict=True):
    np.testing.assert_array_equal(one, other)


def test_a_collapse_is_announced(tmp_path, capsys, monkeypatch):
  scores = iter([0.6, 0.5, 0.1])
  monkeypatch.setattr(
    validation,
    "marks",
    lambda *args: {"clean_accuracy": 1.0, "pgd_accuracy": next(scores)},
  )
  exam = validation.Exam(cases.plan("fast"), _PLAIN, 2, 0)
  validate = validation.validate_fn(exam, _EXAMPLES, 10, tmp_path)
  path = tmp_path / "metrics.jsonl"
  for step in range(3):
    row = validate({})
    score = row["validation_pgd_accuracy"]
    with open(path, "a") as file:
      file.write(f'{{"step": {step}, "validation_pgd_accuracy": {score}}}\n')
    said = capsys.readouterr().out
    assert ("catastrophic overfitting" in said) == (step == 2)


def test_a_null_class_is_counted_apart():
  plan = cases.plan("null_class")
  module = _module("null_class")
  assert module.num_classes == 11
  x = data.batch(_EXAMPLES, [0])["image"]
  variables = module.init(jax.random.key(0), x)
  # A network that always rejects.
  variables = jax.tree.map(jnp.zeros_like, variables)
  variables["params"]["Dense_1"]["bias"] = 5 * jnp.eye(11)[10]
  exam = validation.Exam(plan, module, 2, 0)
  marks = validation.marks(exam, variables, _EXAMPLES, 20)
  assert marks["clean_accuracy"] == 0.0
  assert marks["clean_null"] == marks["pgd_null"] == 1.0
  assert marks["clean_fooled"] == marks["pgd_fooled"] == 0.0
