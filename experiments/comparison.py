"""Defences side by side, with the signs that one hides its gradients.

A defence that masks its gradients is robust to weak attacks only. It gives
itself away where an attack that should be weaker does better: one step than
many, examples made on another model than those made on this one, queries than
gradients; or where AutoAttack leaves little of what PGD leaves.

Reference: Athalye, Carlini, Wagner, "Obfuscated gradients give a false sense of
security", 2018.
"""

import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import assessment, common, remarks, scores, victims
from jaxadv import evaluation
from jaxadv.report import tables

Numbers = scores.Numbers

ATTACKS = ("fgsm", "pgd", "autoattack")

# A weaker attack may be luckier on a few examples.
_LUCK = 0.02
# What AutoAttack takes beyond PGD: of adversarially trained models that hide
# nothing a few points, of the defences that it was first to break more than 10.
_GAP = 0.1

_NOTE = (
  "Accuracy in % of all examples. transfer: PGD of the whole budget on "
  "{source}. worst case: right at the clean input and under all of these, ± "
  "half the 95 % Wilson interval. s/epoch: the median, without validation."
)


class Transfer(NamedTuple):
  """Inputs that were made to fool another model.

  Attributes:
    source: The model's name.
    x_adv: The inputs [N, ...].
  """

  source: str
  x_adv: np.ndarray


def craft(
  source: victims.Victim,
  plan: assessment.Plan,
  workdir: pathlib.Path,
  *,
  stop: Callable[[], bool] = lambda: False,
) -> Transfer:
  """PGD on the source, of the whole budget: what barely fools it rarely others.

  Raises:
    engine.Interrupted: `stop` said so; the next call goes on from there.
    SystemExit: The folder holds records of something else.
  """
  alone = plan._replace(attacks=("pgd_full",), radii=())
  outcome = assessment.assess(source, alone, workdir, stop=stop)
  return Transfer(source.name, outcome.attacked["pgd_full"].record.x_adv)


def training(model_dir: str | os.PathLike) -> dict[str, Any]:
  """What a model's training says about itself; None where it does not."""
  found: dict[str, Any] = {}
  for name in ("model.json", "results.json"):
    path = pathlib.Path(model_dir) / name
    found |= common.read_json(path) if path.exists() else {}
  return {
    name: found.get(name) for name in ("defence", "epochs", "seconds_per_epoch")
  }


def numbers(
  outcome: assessment.Outcome,
  norm: str,
  transfer: Transfer | None,
  trained: Mapping[str, Any],
) -> Numbers:
  """What `results.json` says of a model: `scores.numbers` and more.

  Args:
    outcome: Of a plan with `ATTACKS`.
    norm: Of the ball.
    transfer: None for the model that they were made on, to which they are no
      black-box attack.
    trained: As `training` tells.
  """
  found = scores.numbers(outcome, norm)
  fooled_by = [attacked.fooled for attacked in outcome.attacked.values()]
  found |= {"training": dict(trained), "transfer": None}
  if transfer is not None:
    fooled_by.append(_fooled(outcome, transfer.x_adv))
    alone = evaluation.summary(outcome.clean_wrong, fooled_by[-1:])
    found["transfer"] = {"source": transfer.source} | _rate(alone)
  worst = evaluation.summary(outcome.clean_wrong, fooled_by)
  found["worst_case"] = _rate(worst)
  return found | {"warnings": warnings(found)}


def _fooled(outcome: assessment.Outcome, x_adv: np.ndarray) -> np.ndarray:
  victim, plan = outcome.victim, outcome.plan
  valid = evaluation.inside(plan.ball(plan.eps), victim.images, x_adv)
  return valid & evaluation.fooled(
    victim.logits_fn,
    jax.random.key(plan.seed),
    x_adv,
    victim.labels,
    batch_size=plan.slots,
  )


def _rate(summary: evaluation.Summary) -> Numbers:
  rate = summary.robust_accuracy
  return {
    "robust_accuracy": rate,
    "robust_interval": scores.interval(rate, summary.num_examples),
  }


def warnings(found: Numbers) -> dict[str, str]:
  """Why a model's numbers may flatter it: in a word and in a sentence."""
  fgsm, pgd, auto = (
    found["attacks"][name]["robust_accuracy"] for name in ATTACKS
  )
  transfer, left = found["transfer"], remarks.percent(pgd)
  signs: dict[str, str] = {}
  if pgd - auto > _GAP:
    signs["PGD fails"] = (
      f"PGD leaves {left}, AutoAttack {remarks.percent(auto)}: the gradients "
      "of cross-entropy do not lead to the adversarial inputs that exist."
    )
  if pgd - fgsm > _LUCK:
    signs["FGSM wins"] = (
      f"one step leaves {remarks.percent(fgsm)}, many leave {left}."
    )
  if transfer and pgd - transfer["robust_accuracy"] > _LUCK:
    rate = remarks.percent(transfer["robust_accuracy"])
    signs["transfer wins"] = (
      f"inputs made on {transfer['source']} leave {rate}, PGD on the model "
      f"itself {left}."
    )
  if suspicions := found["attacks"]["autoattack"]["suspicions"]:
    signs["AA warns"] = "; ".join(suspicions)
  return signs


def table(found: Mapping[str, Numbers]) -> tables.Table:
  """A row for each model; below it, what there is to say about each."""
  first = next(iter(found.values()))
  sources = {
    each["transfer"]["source"] for each in found.values() if each["transfer"]
  }
  notes = [_NOTE.format(source=", ".join(sources) or "none")]
  for name, each in found.items():
    notes += [
      f"WARNING {name}, {sign}: {text}"
      for sign, text in each["warnings"].items()
    ]
    if each["training"]["defence"] == "null_class":
      notes.append(f"{name} may answer null, which counts as wrong here.")
    if broken := remarks.outside(each):
      notes.append(f"ERROR {name}: {', '.join(broken)} left the ball.")
  rates = ("clean", *ATTACKS, "transfer")
  return tables.Table(
    scores.threat(first),
    ["model", *rates, "worst case", "epochs", "s/epoch", "warnings"],
    [[name, *_cells(each)] for name, each in found.items()],
    note="\n".join(notes),
    formats=dict.fromkeys(rates, ".1f") | {"s/epoch": ".3g"},
  )


def _cells(found: Numbers) -> list[Any]:
  worst, transfer = found["worst_case"], found["transfer"] or {}
  low, high = worst["robust_interval"]
  rates = [
    found["clean_accuracy"],
    *(found["attacks"][name]["robust_accuracy"] for name in ATTACKS),
    transfer.get("robust_accuracy"),
  ]
  return [
    *(None if rate is None else 100 * rate for rate in rates),
    f"{100 * worst['robust_accuracy']:.1f} ± {50 * (high - low):.1f}",
    found["training"]["epochs"],
    found["training"]["seconds_per_epoch"],
    ", ".join(found["warnings"]) or None,
  ]
