"""One model under attack: crafted once, judged afresh, kept in a folder.

The folder `records/` holds a file for each finished attack and each radius of
the curve, that of the one under way, and what they belong to. A call that finds
records goes on from them, and ends as if it had never stopped; an attack that
has changed since runs anew (`engine.store`).
"""

import pathlib
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
from jaxadv.engine import fingerprints, store

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
  store: store.Store


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
    SystemExit: The folder holds records of another model, data set or seed.
    ValueError: An attack does not exist.
    engine.Damaged: A record cannot be read.
  """
  attack_table.check(plan.attacks, plan.ball)
  attack_table.check_criterion(plan.attacks, victim.criterion)
  settings = plan.settings._replace(
    loss_fn=victim.loss_fn, criterion=victim.criterion
  )
  plan = plan._replace(settings=settings)
  with common.explained("--workdir"):
    kept = store.Store(
      workdir / "records",
      victim.logits_fn,
      jax.random.key(plan.seed),
      victim.images,
      victim.labels,
    )
  job = _Job(victim, plan, workdir, stop, kept)
  clean_logits = judge.outputs(
    victim.logits_fn,
    jax.random.key(plan.seed),
    victim.images,
    batch_size=plan.slots,
  )
  # A clean input that is rejected is not right, whatever fools the model.
  clean_wrong = _fooled(job, victim.images, criteria.misclassified)
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
  everything = np.arange(len(victim.images))
  record, seconds = _craft(job, name, attack, key_attack, (everything, y))
  near = evaluation.inside(threat, victim.images, record.x_adv)
  valid = record.inside
  if entry.reach is attack_table.Reach.BALL:
    valid = valid & near
  fooled = _fooled(job, record.x_adv, victim.criterion) & valid
  if entry.reach is attack_table.Reach.NEAREST:
    fooled &= near
  return Attacked(
    record=record,
    fooled=fooled,
    success=record.success & valid,
    num_outside=int((~valid).sum()),
    seconds=seconds,
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
      aimed = (rows, victim.labels)
      record, _ = _craft(job, f"curve_{index}", attack, key, aimed)
      robust[rows] = ~record.success
    accuracy.append(robust.mean())
  return np.asarray(accuracy)


def _fooled(job: _Job, x: np.ndarray, criterion: types.Criterion) -> np.ndarray:
  return judge.success(
    job.victim.logits_fn,
    jax.random.key(job.plan.seed),
    x,
    job.victim.labels,
    criterion,
    batch_size=job.plan.slots,
  )


def _craft(
  job: _Job,
  name: str,
  attack: types.Attack,
  key: Array,
  aimed: tuple[np.ndarray, types.PyTree],
) -> tuple[engine.Record, float]:
  """The record of an attack on some rows: from the store, or crafted.

  `aimed` holds the rows and the y of all examples.
  """
  rows, y = aimed
  images, logits_fn = job.victim.images[rows], job.victim.logits_fn
  # Attacks that spend their whole budget do not say what a success is.
  spends = criteria.is_never(attack.threat.criterion)
  criterion = _success(job.plan, name) if spends else None
  what = fingerprints.digest(
    fingerprints.of_attack(attack, logits_fn, images, y, criterion), key, y
  )

  def craft(checkpoint: pathlib.Path) -> engine.Record:
    print(f"{job.victim.name}: {name.replace('_', ' ')}", flush=True)
    return engine.craft(
      attack,
      logits_fn,
      key,
      images,
      jax.tree.map(lambda leaf: leaf[rows], y),
      criterion=criterion,
      slots=common.slots_each(job.plan.slots),
      index=rows,
      checkpoint=checkpoint,
      stop=job.stop,
    )

  return job.store.record(name, what, rows, craft)


def _success(plan: Plan, name: str) -> types.Criterion:
  own = attack_table.ATTACKS[name].criterion
  return plan.settings.criterion if own is None else own
