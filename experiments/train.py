"""Trains a network, plainly or adversarially (Madry et al., 2018).

Digits, from nothing, in seconds; then a network that resists:

  python -m experiments.train --workdir=/tmp/plain
  python -m experiments.train --workdir=/tmp/hard --defence=pgd

Everything is kept under `--workdir`. Kill it at any moment and run the same
command again: it goes on and ends with the same bits. The test set is looked at
once, at the end, and never chooses anything.
"""

import pathlib
import sys

import jax
import jax.numpy as jnp
from absl import app, flags, logging

from experiments import checkpoints, common, fitting
from jaxadv import (
  attacks,
  criteria,
  data,
  engine,
  evaluation,
  models,
  train_state,
  types,
)
from jaxadv.defences import training

_NUMBER = common.Number()
_TEXT: flags.ArgumentSerializer = flags.ArgumentSerializer()

_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Folder of this run.", required=True
)
_DATASET = flags.DEFINE_enum(
  "dataset", "digits", data.DATASETS, "Data set; digits needs no files."
)
_DATA_DIR = flags.DEFINE_string(
  "data_dir",
  None,
  "Where data sets are; by default $TFDS_DATA_DIR or ~/tensorflow_datasets.",
)
_MODEL = flags.DEFINE_enum(
  "model", "mlp", list(common.MODELS), "Network; small_cnn needs 16 x 16."
)
_DEFENCE = flags.DEFINE_enum(
  "defence", "none", ["none", "pgd"], "How to train."
)
_NORM = flags.DEFINE_enum(
  "norm", "linf", list(common.BALLS), "Norm of the threat model."
)
_EPS = flags.DEFINE(
  _NUMBER,
  "eps",
  0.15,
  "Radius of the threat model, of inputs in [0, 1]; usual are 0.3 for MNIST "
  "and 8/255 for CIFAR-10.",
  serializer=_TEXT,
)
_ATTACK_STEPS = flags.DEFINE_integer(
  "attack_steps", 10, "PGD steps of training.", lower_bound=1
)
_ATTACK_STEP_SIZE = flags.DEFINE(
  _NUMBER,
  "attack_step_size",
  None,
  "Length of these steps, in the units of eps; by default 2.5 eps / "
  "attack_steps.",
  serializer=_TEXT,
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
  "optimizer", "adam", list(common.OPTIMIZERS), "Optimiser."
)
_LEARNING_RATE = flags.DEFINE(
  _NUMBER, "learning_rate", 5e-3, "Highest rate.", serializer=_TEXT
)
_SCHEDULE = flags.DEFINE_enum(
  "schedule", "cosine", list(common.SCHEDULES), "Of the learning rate."
)
_MOMENTUM = flags.DEFINE_float(
  "momentum",
  0.9,
  "Nesterov momentum of sgd, b1 of adam.",
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
_SEED = flags.DEFINE_integer(
  "seed", 0, "Seed.", lower_bound=0, upper_bound=2**31 - 1
)
_EVAL_STEPS = flags.DEFINE_integer(
  "eval_attack_steps",
  40,
  "PGD steps of validation and test, each of 2.5 eps / their number.",
  lower_bound=1,
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

for _name in ("eps", "learning_rate"):
  flags.register_validator(_name, lambda value: value > 0, "must be > 0")
flags.register_validator(
  "attack_step_size", lambda value: value is None or value > 0, "must be > 0"
)


def _pgd(num_steps, step_size, criterion, share=1.0) -> types.Attack:
  """PGD of `share` of the radius, in steps of as much of their length."""
  if step_size is None:
    step_size = 2.5 * _EPS.value / num_steps
  return attacks.pgd(
    common.BALLS[_NORM.value](share * _EPS.value),
    num_steps=num_steps,
    step_size=share * step_size,
    criterion=criterion,
  )


def _step_fn(module, side: int, steps_per_epoch: int) -> fitting.StepFn:
  apply_fn = train_state.train_apply(module)
  augment = common.AUGMENTATIONS[_AUGMENT.value](side)
  warmup_steps = max(1.0, _WARMUP_EPOCHS.value * steps_per_epoch)

  def step(state, batch):
    attack, robust_loss = None, training.standard
    if _DEFENCE.value == "pgd":
      attack = _pgd(
        _ATTACK_STEPS.value,
        _ATTACK_STEP_SIZE.value,
        criteria.never,
        jnp.minimum((state.step + 1) / warmup_steps, 1.0),
      )
      robust_loss = training.madry
    return training.train_step(
      state,
      batch,
      train_apply=apply_fn,
      robust_loss=robust_loss,
      attack=attack,
      augment=augment,
    )

  return step


def _judge(module, variables, examples, num_attacked: int) -> dict[str, float]:
  """Clean accuracy of all, and PGD accuracy of the first `num_attacked`."""
  logits_fn = models.bind(module.apply, variables)
  key = jax.random.key(_SEED.value)
  images, labels = data.unit(examples)
  rows = slice(num_attacked)
  with jax.default_matmul_precision("highest"):
    wrong = evaluation.fooled(logits_fn, key, images, labels)
    result = {"clean_accuracy": float(1.0 - wrong.mean())}
    if num_attacked:
      attack = _pgd(_EVAL_STEPS.value, None, criteria.misclassified)
      record = engine.craft(
        attack, logits_fn, key, images[rows], labels[rows], progress=False
      )
      summary = evaluation.summary(wrong[rows], [record.success])
      result["pgd_accuracy"] = summary.robust_accuracy
  return result


def _validate_fn(module, examples: data.Examples) -> fitting.ValidateFn:
  num_attacked = 0 if _DEFENCE.value == "none" else _NUM_VALIDATION.value

  def validate(variables):
    row = _judge(module, variables, examples, num_attacked)
    score = row.get("pgd_accuracy", row["clean_accuracy"])
    row = {f"validation_{name}": value for name, value in row.items()}
    return row | {"score": score}

  return validate


def _results(module, end: checkpoints.Snapshot, test: data.Examples) -> dict:
  results = {
    "steps": int(end.state.step),
    "seconds": round(end.meta["seconds"], 1),
    "best_step": end.meta["best_step"],
    "test_images_attacked": min(_NUM_TEST.value, len(test.labels)),
  }
  for which, variables in (
    ("best", end.best),
    ("last", end.state.eval_variables),
  ):
    row = _judge(module, variables, test, _NUM_TEST.value)
    results |= {f"{which}_test_{name}": row[name] for name in row}
  return results


def _describe(dataset: data.Dataset) -> dict:
  """What `common.load_model` needs to build the network again."""
  return {
    "dataset": _DATASET.value,
    "model": _MODEL.value,
    "num_classes": dataset.num_classes,
    "image_shape": dataset.train.images.shape[1:],
  }


def main(argv: list[str]) -> None:
  """Trains as the flags say; exits with 75 when stopped by SIGTERM."""
  del argv
  logging.set_verbosity(logging.WARNING)
  workdir = pathlib.Path(_WORKDIR.value)
  common.claim(workdir)
  if (workdir / "results.json").exists():
    print(f"already finished: {workdir / 'results.json'}")
    return
  stop = common.on_sigterm()
  common.setup()
  dataset = data.load(_DATASET.value, data_dir=_DATA_DIR.value)
  common.write_json(workdir / "model.json", _describe(dataset))
  schedule = fitting.Schedule(
    _EPOCHS.value, _BATCH_SIZE.value, _SEED.value, _CHECKPOINT_EVERY.value
  )
  module = common.build_model(_MODEL.value, dataset.name, dataset.num_classes)
  learning_rate = common.SCHEDULES[_SCHEDULE.value](
    _LEARNING_RATE.value, schedule.num_steps(dataset.train)
  )
  state = train_state.create(
    module,
    common.OPTIMIZERS[_OPTIMIZER.value](
      learning_rate, _MOMENTUM.value, _WEIGHT_DECAY.value
    ),
    jax.random.key(_SEED.value),
    data.batch(dataset.train, [0])["image"],
    ema_decay=_EMA_DECAY.value,
  )
  try:
    end = fitting.fit(
      workdir,
      state,
      _step_fn(
        module,
        dataset.train.images.shape[1],
        schedule.steps_per_epoch(dataset.train),
      ),
      _validate_fn(module, dataset.validation),
      dataset.train,
      schedule,
      stop,
    )
  except fitting.Preempted as stopped:
    print(f"{stopped}; run the same command again to go on")
    sys.exit(common.PREEMPTED)
  results = _results(module, end, dataset.test)
  common.write_json(workdir / "results.json", results)
  print(f"finished: {results}")


if __name__ == "__main__":
  app.run(main)
