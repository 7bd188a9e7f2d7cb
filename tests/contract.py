"""The rig on which every attack is tested.

`Row` says how to make an attack; `tests/contract_checks.py` holds what all of
them owe their caller, and `tests/attacks/contract_test.py` the table of rows. A
row compiles its attack once: one program, mapped over numbers, serves all
victims, weights and numbers.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxadv import balls, criteria, evaluation, oracles, types
from tests import victims

SHAPE, SIZE, CLASSES, BATCH = (5, 5, 1), 25, 4, 6


class Row(NamedTuple):
  """One attack as the contract sees it.

  Attributes:
    name: The test's name.
    make: The attack of one number, which must be a leaf: the radius where there
      is a ball, else a step size, a confidence or the like.
    numbers: A usual number and another one.
    ball: The ball of that radius; None for attacks without one (minimum-norm,
      goal image), whose results need only stay in the bounds.
    y: What the attack wants, made of the labels.
    won: The attack's own criterion, of that `y`.
    ample: A number with which it wins rows of `victims.ordinary`.
    calls: How often one traced step calls the model in Python: 1, unless the
      step asks twice or calls it from several branches or loops.
  """

  name: str
  make: Callable[[types.Scalar], types.Attack]
  numbers: tuple[float, float]
  ball: Callable[[types.Scalar], types.Ball] | None = None
  y: Callable[[Any], types.PyTree] = lambda labels: labels
  won: types.Criterion = criteria.misclassified
  ample: float | None = None
  calls: int = 1


# A usual radius, another one, and an ample one.
_RADII = {
  balls.Linf: (0.08, 0.05, 1.0),
  balls.L2: (0.3, 0.2, 5.0),
  balls.L1: (1.0, 0.7, 25.0),
}


def over_balls(
  name: str,
  make: Callable[[types.Ball], types.Attack],
  kinds: tuple[type, ...] = (balls.Linf, balls.L2, balls.L1),
  **fields: Any,
) -> list[Row]:
  """One row for each kind of ball that an attack works in."""
  rows = []
  for kind in kinds:
    *numbers, ample = _RADII[kind]
    row = Row(
      f"{name}-{kind.__name__.lower()}",
      lambda eps, kind=kind: make(kind(eps)),
      tuple(numbers),
      ball=kind,
      ample=ample,
    )
    rows.append(row._replace(**fields))
  return rows


def target(labels):
  return (labels + 1) % CLASSES


def label_and_target(labels):
  return labels, target(labels)


def goal(labels):
  return jax.nn.one_hot(target(labels), CLASSES)


def clean_output(labels):
  return 0.9 * jax.nn.one_hot(labels, CLASSES) + 0.1 / CLASSES


@functools.cache
def examples() -> tuple[np.ndarray, np.ndarray]:
  """Inputs that touch the bounds; the last two are wrong from the start."""
  rng = np.random.default_rng(3)
  x = np.clip(rng.uniform(-0.2, 1.2, (BATCH, *SHAPE)), 0, 1).astype(np.float32)
  logits_fn = victims.ordinary(SIZE, CLASSES)
  best = victims.logits(logits_fn, x).argmax(axis=1)
  wrong = np.arange(BATCH) >= BATCH - 2
  return x, np.where(wrong, (best + 2) % CLASSES, best).astype(np.int32)


class Result(NamedTuple):
  state: Any
  steps: Any


def _drive(attack, logits_fn, keys, x, y) -> Result:
  """`engine.run`, with keys, final state and steps laid open."""

  def active(result):
    return ~result.state.done & (result.steps < attack.num_steps)

  def advance(result):
    rows = active(result)
    new, _ = attack.step(logits_fn, result.state)
    state = oracles.choose(rows, new, result.state)
    return Result(state, result.steps + rows)

  start = Result(attack.init(keys, x, y), jnp.zeros(len(x), jnp.int32))
  return jax.lax.while_loop(lambda r: jnp.any(active(r)), advance, start)


# Optimised code would take longer to make than all tests to run.
_jit = functools.partial(
  jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)
drive = _jit(_drive)


@_jit
def _driven(attacks, *arguments) -> Result:
  return jax.vmap(lambda attack: _drive(attack, *arguments))(attacks)


def numbers(row: Row) -> list[float]:
  usual, other = row.numbers
  ample = usual if row.ample is None else row.ample
  return [usual, other, ample, 0.0 if row.ball is not None else usual]


# The lanes of a result: what each of those numbers gave.
USUAL, OTHER, AMPLE, ZERO = range(4)


def arguments(row: Row, logits_fn=None, x=None, labels=None, seed=0):
  usual_x, usual_labels = examples()
  x = usual_x if x is None else x
  labels = usual_labels if labels is None else labels
  keys = jax.random.split(jax.random.key(seed), len(x))
  if logits_fn is None:
    logits_fn = victims.ordinary(SIZE, CLASSES)
  return logits_fn, keys, jnp.asarray(x), row.y(jnp.asarray(labels))


def result(row: Row, num_steps=None, at=None, **changes) -> Result:
  """The results for all numbers at once, by one program: [4, B, ...]."""
  made = [row.make(number) for number in at or numbers(row)]
  if num_steps is not None:
    made = [attack._replace(num_steps=num_steps) for attack in made]
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *made)
  return _driven(stacked, *arguments(row, **changes))


def start(row: Row, dtype=jnp.float32):
  _, keys, x, y = arguments(row)
  return row.make(row.numbers[0]).init(keys, x.astype(dtype), y)


def wins(row: Row, x_adv) -> np.ndarray:
  logits_fn, keys, _, y = arguments(row)
  return np.asarray(jax.vmap(row.won)(logits_fn(keys, x_adv), y))


def assert_valid(row: Row, x_adv) -> None:
  x, _ = examples()
  x_adv = np.asarray(x_adv)
  assert np.isfinite(x_adv).all()
  assert x_adv.min() >= 0.0 and x_adv.max() <= 1.0
  if row.ball is not None:
    for number, rows in zip(numbers(row), x_adv, strict=True):
      assert evaluation.inside(row.ball(number), x, rows).all()
