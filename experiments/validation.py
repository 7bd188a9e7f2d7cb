"""How a network in training is judged: as it is, and under PGD."""

import json
import pathlib
from typing import NamedTuple

import jax
from flax import linen as nn

from experiments import fitting, recipe_steps, recipes
from jaxadv import attacks, data, engine, evaluation, judge, models, types
from jaxadv.defences import monitors, null_class


class Exam(NamedTuple):
  """What is asked.

  Attributes:
    plan: Of the training: its ball and radius are those of PGD.
    module: The network.
    num_steps: Of PGD, each of 2.5 eps / their number.
    seed: Of its starts.
  """

  plan: recipe_steps.Training
  module: nn.Module
  num_steps: int
  seed: int


def marks(
  exam: Exam,
  variables: types.PyTree,
  examples: data.Examples,
  num_attacked: int,
) -> dict[str, float]:
  """Accuracy of all examples, and under PGD of the first `num_attacked`.

  Of a network with a null class, also the shares that are rejected.
  """
  logits_fn = models.bind(exam.module.apply, variables)
  key = jax.random.key(exam.seed)
  images, labels = data.unit(examples)
  rows = slice(num_attacked)
  recipe = recipes.RECIPES[exam.plan.name]
  with jax.default_matmul_precision("highest"):
    wrong = evaluation.fooled(logits_fn, key, images, labels)
    result = {"clean_accuracy": float(1.0 - wrong.mean())}
    inputs = {"clean": images[rows]}
    if num_attacked:
      record = engine.craft(
        _pgd(exam, recipe),
        logits_fn,
        key,
        images[rows],
        labels[rows],
        progress=False,
      )
      robust = ~(record.success | wrong[rows])
      result["pgd_accuracy"] = float(robust.mean())
      inputs["pgd"] = record.x_adv
    if recipe.criterion is null_class.fooled:
      for name, x in inputs.items():
        logits = judge.outputs(logits_fn, key, x, batch_size=128)
        shares = null_class.outcomes(logits, labels[rows])
        result[f"{name}_null"] = shares.null
        result[f"{name}_fooled"] = shares.fooled
  return result


def _pgd(exam: Exam, recipe: recipes.Recipe) -> types.Attack:
  return attacks.pgd(
    exam.plan.ball(exam.plan.eps),
    num_steps=exam.num_steps,
    step_size=2.5 * exam.plan.eps / exam.num_steps,
    loss_fn=recipe.loss_fn,
    criterion=recipe.criterion,
  )


def validate_fn(
  exam: Exam,
  examples: data.Examples,
  num_attacked: int,
  workdir: pathlib.Path,
) -> fitting.ValidateFn:
  """For `fitting.fit`: marks after each epoch; PGD's choose the best.

  Says so when the accuracy under PGD collapses from one epoch to the next, as
  it can with one-step attacks (catastrophic overfitting).
  """

  def validate(variables):
    row = marks(exam, variables, examples, num_attacked)
    score = row.get("pgd_accuracy", row["clean_accuracy"])
    row = {f"validation_{name}": value for name, value in row.items()}
    before = _last(workdir).get("validation_pgd_accuracy")
    if before is not None and monitors.collapsed(before, score):
      print(
        f"catastrophic overfitting: accuracy under PGD fell from {before:.3f} "
        f"to {score:.3f}; the best weights are those of before"
      )
    return row | {"score": score}

  return validate


def _last(workdir: pathlib.Path) -> dict:
  path = workdir / "metrics.jsonl"
  lines = path.read_text().splitlines() if path.exists() else []
  return json.loads(lines[-1]) if lines else {}
