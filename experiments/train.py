"""Trains a network, plainly or with a defence.

Digits, from nothing, in seconds; then networks that resist:

  python -m experiments.train --workdir=/tmp/plain
  python -m experiments.train --workdir=/tmp/hard --defence=pgd
  python -m experiments.train --workdir=/tmp/other --defence=trades --number=3

`recipes` is the table of defences. Everything is kept under `--workdir`. Kill
it at any moment and run the same command again: it goes on and ends with the
same bits. The test set is looked at once, at the end, and chooses nothing.
"""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import optax
from absl import app, flags

from experiments import (
  checkpoints,
  common,
  fitting,
  manners,
  networks,
  optimizers,
  parts,
  recipe_steps,
  recipes,
  shared_flags,
  train_inputs,
  training_report,
  validation,
)
from jaxadv import data, train_state
from jaxadv.engine import fingerprints

_WORKDIR = shared_flags.workdir()
_DATASET = flags.DEFINE_enum(
  "dataset", "digits", data.DATASETS, "Data set; digits needs no files."
)
_DATA_DIR = shared_flags.data_dir()
_MODEL = flags.DEFINE_enum("model", "mlp", list(networks.MODELS), "Network.")
_DEFENCE = flags.DEFINE_enum(
  "defence", "none", list(recipes.RECIPES), "How to train."
)
_NUMBER = shared_flags.number(
  "number",
  None,
  "What the defence tunes, with its default: "
  + "; ".join(
    f"{name}: {recipe.meaning}, {recipe.number:g}"
    for name, recipe in recipes.RECIPES.items()
    if recipe.number is not None
  ),
)
_HELPER_DIRS = flags.DEFINE_list(
  "helper_dirs",
  [],
  "Trained models: the teacher of distillation and ard, the static sources of "
  "ensemble_at.",
)
_DTYPE = flags.DEFINE_enum(
  "dtype",
  "float32",
  ["float32", "bfloat16"],
  "Of the computation in training; weights and evaluation are float32.",
)
_ACCUMULATE = flags.DEFINE_integer(
  "accumulate",
  1,
  "Batches whose gradients make one update of the weights.",
  lower_bound=1,
)
_NORM = shared_flags.norm()
_EPS = shared_flags.eps()
_ATTACK_STEPS = flags.DEFINE_integer(
  "attack_steps", 10, "Steps of multi-step attacks in training.", lower_bound=1
)
_ATTACK_STEP_SIZE = shared_flags.positive(
  "attack_step_size",
  None,
  "Length of these steps, in the units of eps; by default 2.5 eps / "
  "attack_steps.",
)
_WARMUP_EPOCHS = flags.DEFINE_float(
  "warmup_epochs",
  0.0,
  "Epochs over which the radius of the training attack grows to eps. Small "
  "networks can stay at chance without it when eps is large.",
  lower_bound=0.0,
)
_EPOCHS = flags.DEFINE_integer("epochs", 30, "Epochs.", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer(
  "batch_size", 128, "Examples per step.", lower_bound=1
)
_OPTIMIZER = flags.DEFINE_enum(
  "optimizer", "adam", list(optimizers.OPTIMIZERS), "Optimiser."
)
_LEARNING_RATE = shared_flags.positive("learning_rate", 5e-3, "Highest rate.")
_SCHEDULE = flags.DEFINE_enum(
  "schedule", "cosine", list(optimizers.SCHEDULES), "Of the learning rate."
)
_MOMENTUM = flags.DEFINE_float(
  "momentum",
  0.9,
  "Momentum of sgd and nesterov, b1 of adam.",
  lower_bound=0.0,
  upper_bound=0.999,
)
_WEIGHT_DECAY = flags.DEFINE_float(
  "weight_decay", 0.0, "On all weights.", lower_bound=0.0
)
_EMA_DECAY = flags.DEFINE_float(
  "ema_decay",
  0.0,
  "Keep and evaluate an average of the weights; 0 for none.",
  lower_bound=0.0,
  upper_bound=0.999999,
)
_AUGMENT = flags.DEFINE_enum(
  "augment", "none", list(common.AUGMENTATIONS), "Of training images."
)
_SEED = shared_flags.seed()
_EVAL_STEPS = flags.DEFINE_integer(
  "eval_attack_steps",
  40,
  "PGD steps of validation and test, each of 2.5 eps / their number.",
  lower_bound=1,
)
_NUM_TRAIN = flags.DEFINE_integer(
  "num_train",
  0,
  "Train on the first so many images only, to try things out; 0 for all.",
  lower_bound=0,
)
_NUM_VALIDATION = flags.DEFINE_integer(
  "num_validation", 500, "Most validation images to attack.", lower_bound=1
)
_NUM_TEST = flags.DEFINE_integer(
  "num_test", 1000, "Most test images to attack.", lower_bound=1
)
_CHECKPOINT_EVERY = flags.DEFINE_integer(
  "checkpoint_every_steps",
  0,
  "Save also within epochs; 0 for after each epoch only.",
  lower_bound=0,
)


def _describe(dataset: data.Dataset) -> dict:
  """What `networks.load_model` needs to build the network again."""
  return {
    "dataset": _DATASET.value,
    "model": _MODEL.value,
    "defence": _DEFENCE.value,
    "num_classes": dataset.num_classes,
    "image_shape": dataset.train.images.shape[1:],
  }


def _plan(
  dataset: data.Dataset, schedule: fitting.Schedule
) -> recipe_steps.Training:
  """The recipe with all that the flags say about it."""
  side = dataset.train.images.shape[1]
  epoch = schedule.steps_per_epoch(dataset.train)
  return recipe_steps.Training(
    name=_DEFENCE.value,
    ball=common.BALLS[_NORM.value],
    eps=_EPS.value,
    num_steps=_ATTACK_STEPS.value,
    step_size=_ATTACK_STEP_SIZE.value,
    number=_NUMBER.value,
    num_classes=dataset.num_classes,
    warmup_steps=_WARMUP_EPOCHS.value * epoch,
    total_steps=schedule.num_steps(dataset.train),
    augment=common.AUGMENTATIONS[_AUGMENT.value](side),
  )


def _optimizer(plan: recipe_steps.Training) -> optax.GradientTransformation:
  num_updates = max(1, plan.num_updates() // _ACCUMULATE.value)
  return optimizers.optimizer(
    _OPTIMIZER.value,
    optimizers.SCHEDULES[_SCHEDULE.value](_LEARNING_RATE.value, num_updates),
    momentum=_MOMENTUM.value,
    weight_decay=_WEIGHT_DECAY.value,
    accumulate=_ACCUMULATE.value,
  )


def _write_description(
  workdir: pathlib.Path, description: dict[str, Any], helpers: parts.Helpers
) -> None:
  """Writes model.json; refuses to go on with helpers of other weights."""
  path = workdir / "model.json"
  if not helpers:
    common.write_json(path, description)
    return
  digest = fingerprints.digest(jax.tree.leaves(helpers))
  if path.exists() and common.read_json(path).get("helpers", digest) != digest:
    raise SystemExit(
      f"--helper_dirs={','.join(_HELPER_DIRS.value)}: trained anew since "
      f"--workdir={workdir} was begun: choose another --workdir"
    )
  common.write_json(path, description | {"helpers": digest})


def _fit(
  workdir: pathlib.Path,
  dataset: data.Dataset,
  exam: validation.Exam,
  helpers: parts.Helpers,
  schedule: fitting.Schedule,
  stop: Callable[[], bool],
) -> checkpoints.Snapshot:
  plan = exam.plan
  module = networks.build_model(
    _MODEL.value, dataset.name, dataset.num_classes, plan.name, _DTYPE.value
  )
  x = data.batch(dataset.train, range(_BATCH_SIZE.value))["image"]
  state = train_state.create(
    module,
    _optimizer(plan),
    jax.random.key(_SEED.value),
    x[:1],
    ema_decay=_EMA_DECAY.value,
  )
  num_attacked = 0 if plan.name == "none" else _NUM_VALIDATION.value
  return fitting.fit(
    workdir,
    recipe_steps.start(plan, state, x),
    recipe_steps.step_fn(plan, train_state.train_apply(module), helpers),
    validation.validate_fn(exam, dataset.validation, num_attacked, workdir),
    dataset.train,
    schedule,
    stop,
  )


@manners.script
def main(argv: list[str]) -> None:
  """Trains as the flags say; exits with 75 when stopped by SIGTERM."""
  common.only_flags(argv)
  workdir = pathlib.Path(_WORKDIR.value)
  shared_flags.settle_eps(workdir, lambda: _DATASET.value)
  if common.finished(workdir):
    return
  stop = common.setup()
  dataset = train_inputs.dataset(
    _DATASET.value, _DATA_DIR.value, _NUM_TRAIN.value, _BATCH_SIZE.value
  )
  helpers = train_inputs.helpers(_DEFENCE.value, _HELPER_DIRS.value, dataset)
  schedule = fitting.Schedule(
    _EPOCHS.value, _BATCH_SIZE.value, _SEED.value, _CHECKPOINT_EVERY.value
  )
  plan = _plan(dataset, schedule)
  train_inputs.check(plan, helpers, _MODEL.value, dataset)
  common.claim(workdir)
  _write_description(workdir, _describe(dataset), helpers)
  module = networks.build_model(
    _MODEL.value, dataset.name, dataset.num_classes, plan.name
  )
  exam = validation.Exam(plan, module, _EVAL_STEPS.value, _SEED.value)
  with manners.preemptible():
    end = _fit(workdir, dataset, exam, helpers, schedule, stop)
  results = training_report.results(
    exam, end, dataset.test, _NUM_TEST.value, _EPOCHS.value
  )
  training_report.write(workdir, results)
  common.write_json(workdir / "results.json", results)
  print(f"finished: {results}")


if __name__ == "__main__":
  app.run(main)
