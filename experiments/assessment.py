"""One model under attack: crafted once, judged afresh, kept in a folder.

The folder `records/` holds a file for each finished attack and each radius of
the curve, that of the one under way, and what they belong to. A call that finds
records goes on from them, and ends as if it had never stopped.
"""

import hashlib
import json
import pathlib
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import numpy as np

from experiments import attack_table, common, victims
from jaxadv import (
  cascade,
  criteria,
  engine,
  evaluation,
  judge,
  types,
)

Array = jax.Array

# Draws that judge a result of AutoAttack's version for randomised models.
_DRAWS = 20


class Plan(NamedTuple):
  """What is asked of a model.

  Attributes:
    attacks: Names in `attack_table.NAMES`.
    ball: Makes the ball of a radius, such as `balls.Linf`.
    eps: The radius of the threat model.
    radii: Increasing radii of the robustness curve; empty for none.
    settings: Of the attacks.
    seed: Of all random draws.
    slots: Examples attacked at once on each device, or on all cores of a CPU.
  """

  attacks: tuple[str, ...]
  ball: Callable[[float], types.Ball]
  eps: float
  radii: tuple[float, ...]
  settings: attack_table.Settings
  seed: int
  slots: int


class Attacked(NamedTuple):
  """What one attack achieved.

  Attributes:
    record: What `engine.craft` returned, or that of a cascade.
    fooled: Whether each result is valid, misclassified and, unless the attack
      knows no radius, in the ball [N].
    success: Whether it is valid and meets the attack's own criterion [N].
    num_outside: Results that left where the attack has to stay: the ball, for
      those that know it, and the bounds. They count as failures; any other
      number than 0 is an error of the attack.
    seconds: What it took, compilation included.
    stages: Of a cascade: accuracy after each of its attacks.
    suspicions: Of a cascade: why the numbers may be too good.
  """

  record: engine.Record
  fooled: np.ndarray
  success: np.ndarray
  num_outside: int
  seconds: float
  stages: Mapping[str, float] = MappingProxyType({})
  suspicions: tuple[str, ...] = ()


class Outcome(NamedTuple):
  """All that was found out about a model.

  Attributes:
    victim: The model and its examples.
    plan: What was asked.
    clean_logits: Of the images [N, C].
    clean_wrong: Whether the image itself is misclassified [N].
    attacked: By attack.
    curve: Accuracy under PGD [K] at `plan.radii`.
  """

  victim: victims.Victim
  plan: Plan
  clean_logits: np.ndarray
  clean_wrong: np.ndarray
  attacked: dict[str, Attacked]
  curve: np.ndarray


class _Job(NamedTuple):
  victim: victims.Victim
  plan: Plan
  workdir: pathlib.Path
  stop: Callable[[], bool]


def assess(
  victim: victims.Victim,
  plan: Plan,
  workdir: pathlib.Path,
  *,
  stop: Callable[[], bool] = lambda: False,
) -> Outcome:
  """Attacks the model in every way of the plan.

  Raises:
    engine.Interrupted: `stop` said so; the next call goes on from there.
    SystemExit: The folder holds records of something else.
    ValueError: An attack does not exist.
  """
  attack_table.check(plan.attacks, plan.ball)
  job = _Job(victim, plan, workdir, stop)
  with common.explained(str(workdir / "records")):
    _claim(job)
  clean_logits = judge.outputs(
    victim.logits_fn,
    jax.random.key(plan.seed),
    victim.images,
    batch_size=plan.slots,
  )
  clean_wrong = _fooled(job, victim.images, victim.labels)
  attacked = {name: _attacked(job, name, clean_logits) for name in plan.attacks}
  curve = _curve(job, clean_wrong)
  return Outcome(victim, plan, clean_logits, clean_wrong, attacked, curve)


def _attacked(job: _Job, name: str, clean_logits: np.ndarray) -> Attacked:
  if name in attack_table.CASCADES:
    return _cascaded(job, name)
  victim, plan = job.victim, job.plan
  entry, threat = attack_table.ATTACKS[name], plan.ball(plan.eps)
  key_attack, key_aim = jax.random.split(attack_table.key_of(name, plan.seed))
  y = attack_table.aim(name, key_aim, clean_logits, victim.labels)
  attack = entry.make(threat, plan.settings)
  record = _craft(job, name, attack, key_attack, (victim.images, y))
  fooled = _fooled(job, record.x_adv, victim.labels) & record.inside
  if entry.reach is attack_table.Reach.NEAREST:
    fooled &= evaluation.inside(threat, victim.images, record.x_adv)
  return Attacked(
    record=record,
    fooled=fooled,
    success=record.success,
    num_outside=int((~record.inside).sum()),
    seconds=_seconds(job, name),
  )


def _cascaded(job: _Job, name: str) -> Attacked:
  victim, plan = job.victim, job.plan
  ball = plan.ball(plan.eps)
  print(f"{victim.name}: {name.replace('_', ' ')}", flush=True)
  result = cascade.cascade(
    attack_table.CASCADES[name](ball, plan.settings),
    victim.logits_fn,
    attack_table.key_of(name, plan.seed),
    victim.images,
    victim.labels,
    slots=common.slots_each(plan.slots),
    num_draws=_DRAWS if name == "autoattack_rand" else 1,
    checkpoint_dir=job.workdir / "records" / name,
    stop=job.stop,
  )
  return Attacked(
    record=result.record,
    fooled=result.record.success,
    success=result.record.success,
    num_outside=0,
    seconds=sum(result.seconds.values()),
    stages=result.robust_accuracy,
    suspicions=result.suspicions,
  )


def _curve(job: _Job, clean_wrong: np.ndarray) -> np.ndarray:
  """Accuracy under PGD at each radius; balls are nested, so it never rises."""
  victim, plan = job.victim, job.plan
  key = attack_table.key_of("curve", plan.seed)
  robust = ~clean_wrong
  accuracy = []
  for index, eps in enumerate(plan.radii):
    rows = np.flatnonzero(robust)
    if len(rows) and eps > 0:
      attack = attack_table.pgd(plan.ball(eps), plan.settings)
      images, labels = victim.images[rows], victim.labels[rows]
      record = _craft(job, f"curve_{index}", attack, key, (images, labels))
      robust[rows] = ~record.success
    accuracy.append(robust.mean())
  return np.asarray(accuracy)


def _fooled(job: _Job, x: np.ndarray, labels: np.ndarray) -> np.ndarray:
  return evaluation.fooled(
    job.victim.logits_fn,
    jax.random.key(job.plan.seed),
    x,
    labels,
    batch_size=job.plan.slots,
  )


def _craft(
  job: _Job,
  name: str,
  attack: types.Attack,
  key: Array,
  data: tuple[np.ndarray, types.PyTree],
) -> engine.Record:
  """The record of an attack: from its file, or crafted and filed."""
  path = job.workdir / "records" / f"{name}.npz"
  if path.exists():
    return engine.Record.load(path)
  images, y = data
  # Attacks that spend their whole budget do not say what a success is.
  spends = criteria.is_never(attack.threat.criterion)
  print(f"{job.victim.name}: {name.replace('_', ' ')}", flush=True)
  spent, started = _seconds(job, name), time.monotonic()
  try:
    record = engine.craft(
      attack,
      job.victim.logits_fn,
      key,
      images,
      y,
      criterion=attack_table.ATTACKS[name].criterion if spends else None,
      slots=common.slots_each(job.plan.slots),
      checkpoint=path.with_suffix(".partial.npz"),
      stop=job.stop,
    )
  finally:
    spent += time.monotonic() - started
    common.write_json(_clock(job, name), {"seconds": spent})
  record.save(path)
  return record


def _seconds(job: _Job, name: str) -> float:
  clock = _clock(job, name)
  return json.loads(clock.read_text())["seconds"] if clock.exists() else 0.0


def _clock(job: _Job, name: str) -> pathlib.Path:
  return job.workdir / "records" / f"{name}.json"


def _claim(job: _Job) -> None:
  """Refuses a folder whose records are of another plan, model or data."""
  weights = jax.tree.leaves(job.victim.logits_fn)
  digest = hashlib.blake2b(str(job.plan).encode(), digest_size=16)
  for leaf in (*weights, job.victim.images, job.victim.labels):
    digest.update(np.asarray(leaf).tobytes())
  mine = {"fingerprint": digest.hexdigest()}
  path = job.workdir / "records" / "of.json"
  if not path.exists():
    common.write_json(path, mine)
  elif json.loads(path.read_text()) != mine:
    raise ValueError(
      "holds results of other flags, weights or examples: choose another "
      "--workdir, or delete this folder"
    )
