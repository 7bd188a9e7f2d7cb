"""What tests of an assessment share: a plan, and how its results are read."""

import jax
import numpy as np

from experiments import assessment, attack_table
from jaxadv import balls

PLAN = assessment.Plan(
  attacks=("fgsm", "targeted_pgd", "goal_image"),
  ball=balls.Linf,
  eps=0.1,
  radii=(0.05, 0.1, 0.4),
  settings=attack_table.Settings(
    num_steps=20, step_size=None, num_restarts=2, num_classes=10
  ),
  seed=3,
  slots=8,
)


def records(workdir):
  records = {}
  for path in sorted((workdir / "records").glob("*.npz")):
    with np.load(path) as file:
      records[path.name] = {name: file[name].tobytes() for name in file.files}
  return records


def predictions(victim, x):
  keys = jax.random.split(jax.random.key(0), len(x))
  return np.argmax(victim.logits_fn(keys, x), axis=-1)
