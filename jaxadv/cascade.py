"""Attacks in a row, each on the examples that those before left unbroken."""

import dataclasses
import functools
import os
import re
import time
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxadv import (
  call_checks,
  checks,
  criteria,
  engine,
  judge,
  oracles,
  suspicions,
  types,
)
from jaxadv.engine import fingerprints
from jaxadv.engine.craft import memory_for
from jaxadv.engine.record import distances
from jaxadv.engine.store import Store

Array = jax.Array

# Stands for the clean inputs among the names of attacks.
CLEAN = "clean"
# What an example costs, as `engine.Record` counts it.
_COSTS = ("steps", "forwards", "backwards")


class Result(NamedTuple):
  """What is left of a data set of N examples, in its order.

  Attributes:
    record: Over all attacks: the first result that broke each example, else
      its clean input; `success` where it is broken; sums of steps and passes.
    broken_by: The attack that broke it [N]: a name, `CLEAN` where the clean
      input is misclassified, "" where nothing did.
    robust_accuracy: By attack, of all examples, after it; first of `CLEAN`.
    seconds: By attack, compilation and earlier calls that were stopped
      included.
    suspicions: Why the numbers may be too good, see `suspicions`.
  """

  record: engine.Record
  broken_by: np.ndarray
  robust_accuracy: dict[str, float]
  seconds: dict[str, float]
  suspicions: tuple[str, ...]


class _Job(NamedTuple):
  logits_fn: types.LogitsFn
  num_draws: int
  key: Array
  images: np.ndarray
  labels: np.ndarray
  threat: types.Threat
  options: dict[str, Any]  # Of `engine.craft`.
  store: Store | None


def cascade(
  attacks: Mapping[str, types.Attack],
  logits_fn: types.LogitsFn,
  key: Array,
  images: np.ndarray,
  labels: np.ndarray,
  *,
  ball: types.Ball | None = None,
  slots: int = 128,
  progress: bool = True,
  num_draws: int = 1,
  checkpoint_dir: str | os.PathLike | None = None,
  stop: Callable[[], bool] = lambda: False,
) -> Result:
  """Runs attacks in order, each on the examples that are still right.

  The union of all attacks at the price of the first for most examples. An
  example is broken where a fresh question to the model finds that a result
  inside ball and bounds meets the criterion. Ball, bounds and criterion are
  those of the attacks, which have to agree. Keys are made of the attack's name
  and the example's place in the data set: neither which others survived nor
  which attacks ran before changes what an attack does to an example.

  Args:
    attacks: By name, such as `autoattack.standard(ball, 10)`; of labels.
    logits_fn: The model, bound by `models.bind`.
    key: A PRNG key.
    images: Inputs [N, ...], floating point in the bounds.
    labels: Their labels [N].
    ball: The threat model, where no attack has said it: that of the attacks by
      default. Minimum-norm attacks may leave it, and then have not broken the
      example.
    slots: Rows per device that are attacked at once; the batch size.
    progress: Show a progress bar for each attack (on a terminal).
    num_draws: Of a randomised model, for each verdict: the mean of so many
      probabilities decides. 1 is for models that are not.
    checkpoint_dir: A folder for finished attacks and the one under way, of one
      model, key and data set. (A model behind a Python function is told by its
      answers to 32 images: name another folder for another one.) A call that
      finds it goes on where it stands and
      ends as if it had never stopped; one that finds it finished returns its
      result. An attack that has changed, or has to attack examples that its
      record lacks, is run anew, and says so in a line.
    stop: Asked about once a second; when true, saves and raises.

  Raises:
    engine.Interrupted: `stop` said so; the next call goes on from there.
    MemoryError: the device has too little for so many slots.
    TypeError: arguments that `engine.craft` refuses.
    ValueError: no attacks or names unfit for files, attacks with different
      balls, bounds or criteria, inputs that `engine.craft` refuses, a
      `checkpoint_dir` of another model, key or data set, of other versions of
      JAX or jaxadv, or with files that are damaged (`engine.Damaged`).
  """
  images, labels = call_checks.canonical(images), np.asarray(labels)
  threat = _check(attacks, logits_fn, key, images, labels, ball)
  checks.num_steps(slots, "slots")
  checks.num_steps(num_draws, "num_draws")
  store = None
  if checkpoint_dir is not None:
    store = Store(checkpoint_dir, logits_fn, key, images, labels)
  options = {"slots": slots, "progress": progress, "stop": stop}
  job = _Job(
    logits_fn,
    num_draws,
    key,
    images,
    labels,
    threat,
    options,
    store,
  )
  with memory_for(slots):
    result = _in_order(job, attacks)
    found = _suspicions(job, attacks, result.robust_accuracy)
  return result._replace(suspicions=result.suspicions + found)


def _in_order(job: _Job, attacks: Mapping[str, types.Attack]) -> Result:
  x_adv = job.images.copy()
  wrong = _fooled(job, x_adv, np.arange(len(x_adv)))
  # Who broke an example, by place in `names`; the last is nobody.
  names = (CLEAN, *attacks, "")
  nobody = len(names) - 1
  breaker = np.where(wrong, 0, nobody)
  cost = {name: np.zeros(len(x_adv), np.int64) for name in _COSTS}
  accuracy, seconds = {CLEAN: float((~wrong).mean())}, {}
  strays: tuple[str, ...] = ()
  for number, (name, attack) in enumerate(attacks.items(), start=1):
    rows = np.flatnonzero(breaker == nobody)
    seconds[name] = 0.0
    if len(rows):
      record, seconds[name] = _crafted(job, name, attack, rows)
      broken = _broken(job, record.x_adv, rows)
      if attack.threat.ball is not None:
        strays += suspicions.strays(name, record.inside)
      x_adv[rows[broken]] = record.x_adv[broken]
      breaker[rows[broken]] = number
      for unit, spent in cost.items():
        spent[rows] += getattr(record, unit)
    accuracy[name] = float((breaker == nobody).mean())
  total = engine.Record(
    x_adv=x_adv,
    success=breaker != nobody,
    inside=judge.inside(
      job.threat.ball, job.images, x_adv, bounds=job.threat.bounds
    ),
    bounded=np.asarray(True),
    distance=distances(job.images, x_adv),
    index=np.arange(len(x_adv), dtype=np.int32),
    **cost,
  )
  broken_by = np.asarray(names)[breaker]
  return Result(total, broken_by, accuracy, seconds, strays)


def _check(attacks, logits_fn, key, images, labels, ball) -> types.Threat:
  unfit = [name for name in attacks if not re.fullmatch(r"[\w-]+", name)]
  if not attacks or unfit or CLEAN in attacks:
    raise ValueError(
      f"attacks must have names of letters, digits, - and _, other than "
      f"{CLEAN!r}, got {list(attacks)}"
    )
  checks.labels(labels, None, "labels")
  for attack in attacks.values():
    call_checks.attack_call(attack, logits_fn, key, images, labels, "images")
  return _common(attacks, ball)


def _common(
  attacks: Mapping[str, types.Attack], ball: types.Ball | None
) -> types.Threat:
  """What all attacks are after: each has to agree or leave it open."""
  threats = {name: attack.threat for name, attack in attacks.items()}
  found = [ball] if ball is not None else []
  found += [t.ball for t in threats.values() if t.ball is not None]
  if not found:
    raise ValueError(
      "ball must be given where no attack has one: ball=balls.Linf(8 / 255)"
    )
  stated = [
    threat.criterion
    for threat in threats.values()
    if not criteria.is_never(threat.criterion)
  ]
  criterion = stated[0] if stated else types.hashable(criteria.misclassified)
  first = next(iter(threats.values()))
  common = types.Threat(found[0], first.bounds, criterion)
  for name, threat in threats.items():
    own = types.Threat(
      common.ball if threat.ball is None else threat.ball,
      threat.bounds,
      criterion if criteria.is_never(threat.criterion) else threat.criterion,
    )
    if not types.same(own, common):
      raise ValueError(
        f"attack {name!r} has {own} where others, or the argument ball, have "
        f"{common}: the attacks of a cascade need the same ball, bounds and "
        "criterion"
      )
  return common


@dataclasses.dataclass(frozen=True)
class _Draws:
  # Shapes depend on the number, so it belongs to the pytree's structure.
  number: int

  def __call__(self) -> int:
    return self.number


def _judged(logits_fn: types.LogitsFn, num_draws: int) -> types.LogitsFn:
  if num_draws == 1:
    return logits_fn
  draws = types.Static(_Draws(num_draws))
  return jax.tree_util.Partial(_mean_of_draws, draws, logits_fn)


def _mean_of_draws(draws, logits_fn, keys, x) -> types.PyTree:
  answer = oracles.Sampled(logits_fn, draws())(keys, x)
  return oracles.mean_logits(answer)


def _fooled(job: _Job, x: np.ndarray, rows: np.ndarray) -> np.ndarray:
  return judge.success(
    _judged(job.logits_fn, job.num_draws),
    job.key,
    x,
    job.labels[rows],
    job.threat.criterion,
    batch_size=job.options["slots"],
    index=rows,
  )


def _broken(job: _Job, x_adv: np.ndarray, rows: np.ndarray) -> np.ndarray:
  threat = job.threat
  valid = judge.inside(
    threat.ball, job.images[rows], x_adv, bounds=threat.bounds
  )
  return valid & _fooled(job, x_adv, rows)


def _crafted(
  job: _Job, name: str, attack: types.Attack, rows: np.ndarray
) -> tuple[engine.Record, float]:
  """The record of an attack and its seconds; from the store, if it has it."""
  craft = functools.partial(_craft, job, name, attack, rows)
  if job.store is None:
    started = time.monotonic()
    return craft(), time.monotonic() - started
  # Not ball and criterion of the cascade: it judges what the record holds.
  what = fingerprints.of_attack(attack, job.logits_fn, job.images, job.labels)
  return job.store.record(name, what, rows, craft)


def _craft(job, name, attack, rows, checkpoint=None) -> engine.Record:
  silent = criteria.is_never(attack.threat.criterion)
  return engine.craft(
    attack,
    job.logits_fn,
    jax.random.fold_in(job.key, zlib.crc32(name.encode())),
    job.images[rows],
    job.labels[rows],
    checkpoint=checkpoint,
    index=rows,
    name=name,
    criterion=job.threat.criterion if silent else None,
    **job.options,
  )


def _suspicions(job, attacks, accuracy) -> tuple[str, ...]:
  """Of the model, on the first examples, and of the outcome."""
  slots = job.options["slots"]
  images, labels = job.images[:slots], job.labels[:slots]
  found = suspicions.of_outputs(
    job.logits_fn, job.key, images, batch_size=slots
  )
  if job.num_draws == 1:
    found += suspicions.randomised(
      job.logits_fn, job.key, images, batch_size=slots
    )
  blind = {name for name in attacks if attacks[name].backwards == 0}
  if len(blind) < len(attacks):
    found += suspicions.zero_gradients(
      job.logits_fn, job.key, images, labels, batch_size=slots
    )
  return found + suspicions.queries_win(accuracy, blind)
