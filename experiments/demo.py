"""A network fooled, a network hardened, and how robust both are.

  python -m experiments.demo        (or `make demo`)

Trains two networks on the digits of scikit-learn, plainly and adversarially,
attacks both in the same ways and compares them in one table and one page. What
is finished under `--workdir` is not done again.
"""

import pathlib

import jax
import rich
from absl import app, flags

from experiments import (
  assessment,
  attack_table,
  common,
  evaluation_report,
  manners,
  scores,
  shared_flags,
  trainings,
  victims,
)
from jaxadv import balls
from jaxadv.report import tables

_WORKDIR = flags.DEFINE_string("workdir", "runs/demo", "Folder of the demo.")
_EPOCHS = flags.DEFINE_integer("epochs", 20, "Of each training.", lower_bound=1)
_NUM_EXAMPLES = flags.DEFINE_integer(
  "num_examples", 0, "Most test images to attack; 0 for all.", lower_bound=0
)

_EPS = shared_flags.RADII["digits"]["linf"]
# Few slots never shrink, so each attack compiles once: for these networks that
# takes longer than the attack.
_SLOTS = 8
_DEFENCES = {"standard": "none", "hardened": "pgd"}


def _train_flags(defence: str) -> list[str]:
  return [
    f"--defence={defence}",
    f"--eps={_EPS}",
    f"--epochs={_EPOCHS.value}",
    "--batch_size=64",
  ]


def _plan(victim: victims.Victim) -> assessment.Plan:
  return assessment.Plan(
    attacks=("fgsm", "bim", "pgd", "targeted_pgd", "goal_image"),
    ball=balls.Linf,
    eps=_EPS,
    radii=tuple(factor * _EPS for factor in (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)),
    settings=attack_table.Settings(
      num_steps=40,
      step_size=None,
      num_restarts=1,
      num_classes=len(victim.class_names),
    ),
    seed=0,
    slots=_SLOTS,
  )


@manners.script
def main(argv: list[str]) -> None:
  """Trains, attacks and compares; exits with 75 when stopped by SIGTERM."""
  common.only_flags(argv)
  common.every_core()
  stop = common.setup()
  workdir = pathlib.Path(_WORKDIR.value)
  common.claim(workdir)
  outcomes, found = {}, {}
  for name, defence in _DEFENCES.items():
    trainings.train(workdir / "models" / name, _train_flags(defence), stop)
  print(f"\nattacks on both, up to {_EPS} per pixel", flush=True)
  for name in _DEFENCES:
    victim = victims.load(
      workdir / "models" / name, num_examples=_NUM_EXAMPLES.value
    )
    with manners.preemptible(), jax.default_matmul_precision("highest"):
      outcomes[name] = assessment.assess(
        victim, _plan(victim), workdir / "attacked" / name, stop=stop
      )
    found[name] = scores.numbers(outcomes[name], "linf")
  evaluation_report.write(
    workdir / "report.html",
    "A network fooled, a network hardened",
    outcomes,
    found,
  )
  common.write_json(workdir / "results.json", found)
  print()
  rich.print(tables.to_rich(scores.comparison(found)))
  print(f"\nreport: {(workdir / 'report.html').resolve()}")


if __name__ == "__main__":
  app.run(main)
