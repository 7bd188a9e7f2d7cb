"""Attacks a trained network and says how robust it is.

  python -m experiments.train --workdir=/tmp/hard --defence=pgd
  python -m experiments.evaluate --model_dir=/tmp/hard --workdir=/tmp/attacked

Everything is kept under `--workdir`: `records/` (the adversarial inputs of each
attack), `report.html`, and last `results.json`. Kill it at any moment and run
the same command again: it goes on and ends with the same results. Where the
model has been trained again since, it refuses to show what it found of the old
one.
"""

import math
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
import rich
from absl import app, flags

from experiments import (
  assessment,
  attack_table,
  common,
  evaluation_report,
  manners,
  networks,
  remarks,
  scores,
  shared_flags,
  victims,
)
from jaxadv import data
from jaxadv.report import tables

_WORKDIR = shared_flags.workdir()
_MODEL_DIR = flags.DEFINE_string(
  "model_dir", None, "The --workdir of the model's training.", required=True
)
_WHICH = flags.DEFINE_enum(
  "which",
  "best",
  ["best", "last"],
  "The best weights by validation or the last.",
)
_DATASET = flags.DEFINE_enum(
  "dataset", None, data.DATASETS, "Data set; by default the model's own."
)
_DATA_DIR = shared_flags.data_dir()
_SPLIT = flags.DEFINE_enum(
  "split", "test", ["train", "validation", "test"], "Split to attack."
)
_NUM_EXAMPLES = flags.DEFINE_integer(
  "num_examples",
  1000,
  "Most examples to attack, the first of the split; 0 for all.",
  lower_bound=0,
)
_ATTACKS = flags.DEFINE_list(
  "attacks",
  ["fgsm", "bim", "pgd", "targeted_pgd", "goal_image"],
  f"Attacks, of {', '.join(attack_table.NAMES)}.",
)
_NORM = shared_flags.norm()
_EPS = shared_flags.eps()
_NUM_STEPS = flags.DEFINE_integer(
  "num_steps",
  None,
  "Steps of the iterative attacks; by default 40, and the default of each "
  "minimum-norm attack. Those of AutoAttack have their own, always.",
  lower_bound=1,
)
_STEP_SIZE = shared_flags.positive(
  "step_size",
  None,
  "Length of these steps, in the units of eps; by default 2.5 eps / num_steps "
  "and, of mi_fgsm and ni_fgsm, eps / num_steps.",
)
_NUM_RESTARTS = flags.DEFINE_integer(
  "num_restarts", 5, "Rounds of pgd_restarts.", lower_bound=1
)
_RADII = flags.DEFINE_list(
  "radii",
  None,
  "Increasing radii of the robustness curve; by default 1/4, 1/2, 3/4, 1, 3/2 "
  "and 2 times eps. Empty for no curve.",
)
_SLOTS = shared_flags.slots()
_SEED = shared_flags.seed()


@flags.multi_flags_validator(["attacks", "norm"])
def _attacks_fit(values: dict[str, Any]) -> bool:
  try:
    attack_table.check(values["attacks"], common.BALLS[values["norm"]])
  except ValueError as error:
    raise flags.ValidationError(str(error)) from error
  return True


def _parsed(radii: Sequence[str]) -> list[float]:
  return [shared_flags.Number().parse(radius) for radius in radii]


@flags.validator("radii")
def _radii_increase(values: list[str] | None) -> bool:
  try:
    radii = _parsed(values or [])
  except ValueError as error:
    raise flags.ValidationError(str(error)) from error
  if radii != sorted(set(radii)) or not all(0 < r < math.inf for r in radii):
    raise flags.ValidationError("must be numbers > 0 that increase")
  return True


def _plan(num_classes: int) -> assessment.Plan:
  eps, step_size = _EPS.value, _STEP_SIZE.value
  if _RADII.value is None:
    radii = [factor * eps for factor in (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)]
  else:
    radii = _parsed(_RADII.value)
  return assessment.Plan(
    attacks=tuple(_ATTACKS.value),
    ball=common.BALLS[_NORM.value],
    eps=eps,
    radii=tuple(radii),
    settings=attack_table.Settings(
      num_steps=_NUM_STEPS.value,
      step_size=None if step_size is None else step_size / eps,
      num_restarts=_NUM_RESTARTS.value,
      num_classes=num_classes,
    ),
    seed=_SEED.value,
    slots=_SLOTS.value,
  )


def _dataset() -> str:
  if _DATASET.value is not None:
    return _DATASET.value
  with common.explained(f"--model_dir={_MODEL_DIR.value}"):
    return networks.described(_MODEL_DIR.value)["dataset"]


def _victim() -> victims.Victim:
  named = f"--model_dir={_MODEL_DIR.value}"
  if _DATASET.value is not None:
    named += f" --dataset={_DATASET.value}"
  with common.explained(named):
    return victims.load(
      _MODEL_DIR.value,
      _WHICH.value,
      dataset=_DATASET.value,
      data_dir=_DATA_DIR.value,
      split=_SPLIT.value,
      num_examples=_NUM_EXAMPLES.value,
    )


def _finish(outcome: assessment.Outcome, workdir: pathlib.Path) -> None:
  name = outcome.victim.name
  found = scores.numbers(outcome, _NORM.value)
  evaluation_report.write(
    workdir / "report.html",
    f"{name}{' (training unfinished)' if _unfinished() else ''} under attack",
    {name: outcome},
    {name: found},
  )
  found["of"] = victims.digest(outcome.victim)
  common.write_json(workdir / "results.json", found)


def _unfinished() -> bool:
  """Whether the model's training has not come to its end."""
  return not (pathlib.Path(_MODEL_DIR.value) / "results.json").exists()


def _check_current(victim: victims.Victim, workdir: pathlib.Path) -> None:
  """Refuses results of weights or examples that are no more."""
  found = common.read_json(workdir / "results.json")
  if found.get("of") != victims.digest(victim):
    sys.exit(
      f"--workdir={workdir} holds results of other weights or examples than "
      f"--model_dir={_MODEL_DIR.value} has now: choose another --workdir, or "
      "delete this one"
    )


def _show(workdir: pathlib.Path) -> None:
  path = workdir / "results.json"
  found = common.read_json(path)
  with manners.undamaged(path):
    table, broken = scores.table(found), remarks.outside(found)
  rich.print(tables.to_rich(table))
  if _unfinished():
    print(
      f"WARNING --model_dir={_MODEL_DIR.value}: its training is unfinished, "
      "these are weights on the way"
    )
  print(f"report: {workdir / 'report.html'}")
  if broken:
    sys.exit(f"ERROR: {', '.join(broken)} left the ball or the bounds")


@manners.script
def main(argv: list[str]) -> None:
  """Attacks as the flags say; exits with 75 when stopped by SIGTERM."""
  common.only_flags(argv)
  workdir = pathlib.Path(_WORKDIR.value)
  shared_flags.settle_eps(workdir, _dataset)
  if common.finished(workdir):
    _check_current(_victim(), workdir)
  else:
    common.every_core()
    stop = common.setup()
    victim = _victim()
    common.claim(workdir)
    plan = _plan(len(victim.class_names))
    with manners.preemptible(), jax.default_matmul_precision("highest"):
      outcome = assessment.assess(victim, plan, workdir, stop=stop)
      _finish(outcome, workdir)
  _show(workdir)


if __name__ == "__main__":
  app.run(main)
