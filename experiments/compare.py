r"""Trains or loads defences and compares them in one honest table.

  python -m experiments.compare --workdir=/tmp/compared --eps=0.2 \
    --defences=none,pgd,distillation --train_flags="--epochs=20"
  python -m experiments.compare --workdir=/tmp/others \
    --model_dirs=/tmp/plain,/tmp/hard

Each model meets FGSM, PGD, AutoAttack and the inputs that PGD made on another
model. Everything is kept under `--workdir`: `models/` (what was trained),
`attacked/` and `transfer/` (records), `report.html`, and last `results.json`.
Kill it at any moment and run the same command again: it goes on.
"""

import pathlib
import shlex
import sys
from typing import Any

import jax
import numpy as np
from absl import app, flags

from experiments import (
  assessment,
  attack_table,
  common,
  comparison,
  evaluation_report,
  manners,
  networks,
  recipes,
  remarks,
  scores,
  shared_flags,
  trainings,
  victims,
)
from jaxadv import criteria, data, losses
from jaxadv.report import page, tables

# Whose model helps the defences that need one: trained first, and shown only
# where it is named itself. A robust teacher for ARD, as in its paper.
HELPERS = {"distillation": "teacher", "ard": "trades", "ensemble_at": "none"}
# Flags of the training that differ from model to model.
_PER_MODEL = ("workdir", "defence", "number", "helper_dirs", "flagfile")

_WORKDIR = shared_flags.workdir()
_DEFENCES = flags.DEFINE_list(
  "defences",
  [],
  f"Defences to train, of {', '.join(recipes.RECIPES)}. Those that need a "
  "helper get one, trained first: "
  + ", ".join(f"{helper} for {name}" for name, helper in HELPERS.items()),
)
_TRAIN_FLAGS = flags.DEFINE_string(
  "train_flags",
  "",
  "Flags of experiments.train for all of them, such as '--epochs=3 "
  "--dataset=mnist'. norm, eps, seed and data_dir are those of this run, "
  "unless named here.",
)
_MODEL_DIRS = flags.DEFINE_list(
  "model_dirs", [], "The --workdir of trained models, for a row each."
)
_TRANSFER_FROM = flags.DEFINE_string(
  "transfer_from",
  None,
  "The --workdir of the model on which the black-box attack makes its inputs; "
  "by default the first of the table.",
)
_DATA_DIR = shared_flags.data_dir()
_NORM = shared_flags.norm()
_EPS = shared_flags.eps()
_NUM_STEPS = flags.DEFINE_integer(
  "num_steps", 40, "Of PGD, each of 2.5 eps / their number.", lower_bound=1
)
_NUM_EXAMPLES = flags.DEFINE_integer(
  "num_examples",
  1000,
  "Most test images to attack, the first; 0 for all.",
  lower_bound=0,
)
_SLOTS = shared_flags.slots()
_SEED = shared_flags.seed()


@flags.multi_flags_validator(["defences", "model_dirs"])
def _models_are_distinct(values: dict[str, Any]) -> bool:
  names = values["defences"] + [_name(path) for path in values["model_dirs"]]
  unknown = [name for name in values["defences"] if name not in recipes.RECIPES]
  if unknown:
    raise flags.ValidationError(
      f"no defence {', '.join(unknown)}; choose from "
      f"{', '.join(recipes.RECIPES)}"
    )
  if not names:
    raise flags.ValidationError(
      "need at least one model, of --defences or --model_dirs"
    )
  if len(set(names)) < len(names):
    raise flags.ValidationError(
      f"need each name once, got {names}: a model is called as its folder"
    )
  return True


@flags.validator("train_flags")
def _train_flags_are_for_all(value: str) -> bool:
  try:
    words = shlex.split(value)
  except ValueError as error:
    raise flags.ValidationError(f"{error}: quote as in a shell") from error
  given = {word.lstrip("-").partition("=")[0] for word in words}
  if named := sorted(given.intersection(_PER_MODEL)):
    raise flags.ValidationError(
      f"{', '.join(named)} differs from model to model: train that one with "
      "experiments.train and name it in --model_dirs"
    )
  return True


def _name(model_dir: str | pathlib.Path) -> str:
  return pathlib.Path(model_dir).resolve().name


def _told(name: str) -> str | None:
  """What `--train_flags` says of that flag."""
  words = [word.lstrip("-") for word in shlex.split(_TRAIN_FLAGS.value)]
  told = None
  for word, after in zip(words, [*words[1:], ""], strict=False):
    flag, equals, value = word.partition("=")
    if flag == name:
      told = value if equals else after
  return told


def _dataset() -> str:
  """That of the trainings, or else of the first model."""
  if _DEFENCES.value:
    dataset = _told("dataset") or "digits"
    if dataset not in data.DATASETS:
      raise SystemExit(
        f"--train_flags: no data set {dataset}; choose from "
        f"{', '.join(data.DATASETS)}"
      )
    return dataset
  with common.explained(f"--model_dirs={_MODEL_DIRS.value[0]}"):
    return networks.described(_MODEL_DIRS.value[0])["dataset"]


def _arguments(defence: str, *own: str) -> list[str]:
  """Of the training; what `--train_flags` says comes last and so prevails."""
  arguments = [
    f"--defence={defence}",
    f"--norm={_NORM.value}",
    f"--seed={_SEED.value}",
  ]
  # A training in another norm has the usual radius of that one.
  if _told("norm") in (None, _NORM.value):
    arguments.append(f"--eps={_EPS.value}")
  if _DATA_DIR.value is not None:
    arguments.append(f"--data_dir={_DATA_DIR.value}")
  return [*arguments, *own, *shlex.split(_TRAIN_FLAGS.value)]


def _train(defence: str, stop) -> pathlib.Path:
  """The folder of the trained defence; its helper is trained before it."""
  own = []
  if defence in HELPERS:
    own.append(f"--helper_dirs={_train(HELPERS[defence], stop)}")
  model_dir = pathlib.Path(_WORKDIR.value) / "models" / defence
  trainings.train(model_dir, _arguments(defence, *own), stop)
  return model_dir


def _victim(model_dir: str | pathlib.Path, flag: str = "") -> victims.Victim:
  with common.explained(f"{flag}{model_dir}"):
    victim = victims.load(
      model_dir, data_dir=_DATA_DIR.value, num_examples=_NUM_EXAMPLES.value
    )
  # AutoAttack knows no rejection, so all models are judged alike without it.
  return victim._replace(
    loss_fn=losses.cross_entropy, criterion=criteria.misclassified
  )


def _check_alike(victim: victims.Victim, first: victims.Victim) -> None:
  if not np.array_equal(victim.images, first.images):
    raise SystemExit(
      f"{victim.name} is for {victim.dataset}, {first.name} for "
      f"{first.dataset}: compare models of one data set"
    )


def _check_given() -> None:
  """Refuses models that cannot be loaded or compared, before any training."""
  given = [_victim(path, "--model_dirs=") for path in _MODEL_DIRS.value]
  if _TRANSFER_FROM.value is not None:
    given.append(_victim(_TRANSFER_FROM.value, "--transfer_from="))
  for victim in given:
    _check_alike(victim, given[0])


def _plan(victim: victims.Victim) -> assessment.Plan:
  return assessment.Plan(
    attacks=comparison.ATTACKS,
    ball=common.BALLS[_NORM.value],
    eps=_EPS.value,
    radii=tuple(factor * _EPS.value for factor in (0.5, 1.0, 1.5, 2.0)),
    settings=attack_table.Settings(
      num_steps=_NUM_STEPS.value,
      step_size=None,
      num_restarts=1,
      num_classes=len(victim.class_names),
    ),
    seed=_SEED.value,
    slots=_SLOTS.value,
  )


def _judge(model_dirs: dict[str, pathlib.Path], stop) -> None:
  """Attacks the models, on the same examples, and writes what was found."""
  workdir = pathlib.Path(_WORKDIR.value)
  source_dir = pathlib.Path(
    _TRANSFER_FROM.value or next(iter(model_dirs.values()))
  ).resolve()
  source = _victim(source_dir)
  attacked = {name: _victim(path) for name, path in model_dirs.items()}
  for victim in attacked.values():
    _check_alike(victim, source)
  plan = _plan(source)
  transfer = comparison.craft(source, plan, workdir / "transfer", stop=stop)
  outcomes, found = {}, {}
  for name, model_dir in model_dirs.items():
    outcomes[name] = assessment.assess(
      attacked[name], plan, workdir / "attacked" / name, stop=stop
    )
    found[name] = comparison.numbers(
      outcomes[name],
      _NORM.value,
      None if model_dir.resolve() == source_dir else transfer,
      comparison.training(model_dir),
    )
    found[name]["of"] = victims.digest(attacked[name])
  opening = page.Section("The defences", "", [comparison.table(found)])
  evaluation_report.write(
    workdir / "report.html",
    "Defences compared",
    outcomes,
    found,
    opening=[opening],
  )
  common.write_json(workdir / "results.json", found)


def _check_current(workdir: pathlib.Path) -> None:
  """Refuses results of weights or examples that are no more."""
  path = workdir / "results.json"
  found = common.read_json(path)
  for model_dir in _MODEL_DIRS.value:
    victim = _victim(model_dir, "--model_dirs=")
    with manners.undamaged(path):
      kept = found[_name(model_dir)].get("of")
    if kept != victims.digest(victim):
      sys.exit(
        f"--workdir={workdir} holds results of other weights or examples than "
        f"{model_dir} has now: choose another --workdir, or delete this one"
      )


def _show(workdir: pathlib.Path) -> None:
  path = workdir / "results.json"
  found: dict[str, scores.Numbers] = common.read_json(path)
  with manners.undamaged(path):
    table = comparison.table(found)
    broken = [name for name in found if remarks.outside(found[name])]
  print()
  print(tables.to_text(table))
  print(f"\nreport: {workdir / 'report.html'}")
  if broken:
    sys.exit(f"ERROR: attacks on {', '.join(broken)} left the ball")


@manners.script
def main(argv: list[str]) -> None:
  """Compares as the flags say; exits with 75 when stopped by SIGTERM."""
  common.only_flags(argv)
  workdir = pathlib.Path(_WORKDIR.value)
  shared_flags.settle_eps(workdir, _dataset)
  if common.finished(workdir):
    _check_current(workdir)
  else:
    common.every_core()
    stop = common.setup()
    given = {_name(path): pathlib.Path(path) for path in _MODEL_DIRS.value}
    _check_given()
    if _DEFENCES.value:
      trainings.check(_arguments(_DEFENCES.value[0]))
    manners.alone(workdir)
    # First, so that a folder whose training was refused can take other flags.
    trained = {name: _train(name, stop) for name in _DEFENCES.value}
    common.claim(workdir)
    with manners.preemptible(), jax.default_matmul_precision("highest"):
      _judge(trained | given, stop)
  _show(workdir)


if __name__ == "__main__":
  app.run(main)
