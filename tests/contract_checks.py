"""What every attack owes its caller, whatever it does inside.

Each check takes a `contract.Row` and asserts one promise.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import criteria, types
from tests import contract, victims


def check_inside(row: contract.Row) -> None:
  contract.assert_valid(row, contract.result(row).state.x_adv)


def check_nan_gradient(row: contract.Row) -> None:
  logits_fn = victims.nan_gradient(contract.SIZE, contract.CLASSES)
  contract.assert_valid(
    row, contract.result(row, logits_fn=logits_fn).state.x_adv
  )


def check_constant(row: contract.Row) -> None:
  logits_fn = victims.constant(contract.SIZE, contract.CLASSES)
  contract.assert_valid(
    row, contract.result(row, logits_fn=logits_fn).state.x_adv
  )


def check_saturated(row: contract.Row) -> None:
  logits_fn = victims.saturated(contract.SIZE, contract.CLASSES)
  contract.assert_valid(
    row, contract.result(row, logits_fn=logits_fn).state.x_adv
  )


def check_types(row: contract.Row) -> None:
  """Shapes and dtypes are those of the inputs, and no step changes any."""
  attack = row.make(row.numbers[0])
  start = jax.eval_shape(functools.partial(contract.start, row))
  after, _ = jax.eval_shape(attack.step, contract.arguments(row)[0], start)
  assert (start.x_adv.shape, start.x_adv.dtype) == (
    (contract.BATCH, *contract.SHAPE),
    jnp.float32,
  )
  described = [
    jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state)
    for state in (start, after)
  ]
  assert described[0] == described[1]


def check_outputs(row: contract.Row) -> None:
  """A step hands back what the model said, one row per example."""
  attack = row.make(row.numbers[0])
  logits_fn, *rest = contract.arguments(row)
  start = jax.eval_shape(functools.partial(contract.start, row))
  _, outputs = jax.eval_shape(attack.step, logits_fn, start)
  said = jax.eval_shape(logits_fn, rest[0], rest[1])
  assert jax.tree.leaves(outputs)[0].shape[-2:] == said.shape


def check_threat(row: contract.Row) -> None:
  """An attack says itself what it may do and what it is after."""
  threat = row.make(row.numbers[0]).threat
  ball = None if row.ball is None else row.ball(row.numbers[0])
  assert types.same(threat.ball, ball)
  assert threat.bounds == (0.0, 1.0)
  assert types.same(threat.criterion, types.hashable(row.won))


def check_rows_of_state(row: contract.Row) -> None:
  start = jax.eval_shape(functools.partial(contract.start, row))
  for leaf in jax.tree.leaves(start):
    assert leaf.shape[:1] == (contract.BATCH,)
  for flag in (start.found, start.done):
    assert (flag.shape, flag.dtype) == ((contract.BATCH,), bool)


def check_deterministic(row: contract.Row) -> None:
  """The same keys give the same bits, of a randomised model too."""
  logits_fn = victims.stochastic(contract.SIZE, contract.CLASSES)
  first = contract.result(row, logits_fn=logits_fn).state.x_adv
  again = contract.result(row, logits_fn=logits_fn).state.x_adv
  np.testing.assert_array_equal(first, again)


def check_rows_are_independent(row: contract.Row) -> None:
  """Other examples in the other rows change nothing, not a bit."""
  x, labels = contract.examples()
  kept = np.array([0, contract.BATCH - 1])
  moved, others = np.roll(x, 1, axis=0) ** 2, np.roll(labels, 1)
  moved[kept], others[kept] = x[kept], labels[kept]
  logits_fn = victims.stochastic(contract.SIZE, contract.CLASSES)
  first = contract.result(row, logits_fn=logits_fn)
  second = contract.result(row, logits_fn=logits_fn, x=moved, labels=others)
  np.testing.assert_array_equal(first.steps[:, kept], second.steps[:, kept])
  np.testing.assert_array_equal(
    first.state.x_adv[:, kept], second.state.x_adv[:, kept]
  )


def check_alone_and_eager(row: contract.Row) -> None:
  """A row alone, stepped by Python, goes where it goes in the batch."""
  logits_fn = victims.stochastic(contract.SIZE, contract.CLASSES)
  batch = contract.result(row, logits_fn=logits_fn)
  _, *rows = contract.arguments(row)
  attack = row.make(row.numbers[0])
  with jax.disable_jit():
    state = attack.init(*jax.tree.map(lambda leaf: leaf[2:3], rows))
    steps = 0
    while steps < attack.num_steps and not state.done[0]:
      state, _ = attack.step(logits_fn, state)
      steps += 1
  assert steps == batch.steps[contract.USUAL, 2]
  np.testing.assert_allclose(
    state.x_adv[0], batch.state.x_adv[contract.USUAL, 2], atol=1e-5
  )


def check_never_weaker_than_its_start(row: contract.Row) -> None:
  """Rows that are won where the attack starts are won where it ends."""
  starts, ends = contract.result(row, num_steps=0), contract.result(row)
  for start, end in zip(starts.state.x_adv, ends.state.x_adv, strict=True):
    assert (contract.wins(row, end) >= contract.wins(row, start)).all()
  if row.won is criteria.misclassified:
    assert contract.wins(row, starts.state.x_adv[contract.ZERO]).any()


def check_found_is_true(row: contract.Row) -> None:
  """A row that claims success is a success when the model is asked again."""
  state = contract.result(row).state
  assert state.found[contract.AMPLE].any()
  for found, x_adv in zip(state.found, state.x_adv, strict=True):
    assert contract.wins(row, x_adv)[np.asarray(found)].all()


def check_wins(row: contract.Row) -> None:
  """An ample number wins rows; how far it gets, closed forms must tell."""
  x, _ = contract.examples()
  end = contract.wins(row, contract.result(row).state.x_adv[contract.AMPLE])
  assert end.sum() > contract.wins(row, jnp.asarray(x)).sum()


def check_radius_zero(row: contract.Row) -> None:
  if row.ball is not None:
    x, _ = contract.examples()
    np.testing.assert_array_equal(
      contract.result(row).state.x_adv[contract.ZERO], x
    )


def check_one_trace(row: contract.Row) -> None:
  """New weights, keys, numbers and a factory called anew compile nothing."""
  contract.result(row)
  before = victims.CALLS["mixed"]
  other = victims.ordinary(contract.SIZE, contract.CLASSES, seed=1)
  first, *rest = contract.numbers(row)
  contract.result(row, at=[0.9 * first, *rest], logits_fn=other, seed=1)
  assert victims.CALLS["mixed"] == before


def check_traced_number(row: contract.Row) -> None:
  """The factory takes a number that is being traced, as under `vmap`."""
  made = jax.eval_shape(row.make, row.numbers[0])
  assert jax.tree.structure(made) == jax.tree.structure(
    row.make(row.numbers[1])
  )


def check_no_captured_constants(row: contract.Row) -> None:
  attack = row.make(row.numbers[0])
  jaxpr = jax.make_jaxpr(contract.drive.__wrapped__)(
    attack, *contract.arguments(row)
  )
  assert sum(np.size(constant) for constant in jaxpr.consts) <= contract.CLASSES


def check_budget(row: contract.Row) -> None:
  """The budget is a whole number, and stopping early leaves a valid point."""
  attack = row.make(row.numbers[0])
  assert isinstance(attack.num_steps, int) and attack.num_steps >= 1
  cut = contract.result(row, num_steps=1)
  assert (cut.steps <= 1).all()
  contract.assert_valid(row, cut.state.x_adv)


def check_oracle_calls(row: contract.Row) -> None:
  """`init` asks the model nothing, a step what the row declares."""
  attack = row.make(row.numbers[0])
  before = victims.CALLS["mixed"]
  start = jax.eval_shape(functools.partial(contract.start, row))
  assert victims.CALLS["mixed"] == before
  jax.eval_shape(attack.step, contract.arguments(row)[0], start)
  assert victims.CALLS["mixed"] - before == row.calls


def check_gradients_as_declared(row: contract.Row) -> None:
  """`backwards` is 0 just where the attack can do without gradients."""
  attack = row.make(row.numbers[0])
  start = jax.eval_shape(functools.partial(contract.start, row))
  logits_fn = victims.query_only(contract.SIZE, contract.CLASSES)
  if attack.backwards == 0:
    jax.eval_shape(attack.step, logits_fn, start)
  else:
    with pytest.raises(AssertionError, match="query-only"):
      jax.eval_shape(attack.step, logits_fn, start)


CHECKS = [
  check_inside,
  check_nan_gradient,
  check_constant,
  check_saturated,
  check_types,
  check_outputs,
  check_threat,
  check_rows_of_state,
  check_deterministic,
  check_rows_are_independent,
  check_alone_and_eager,
  check_never_weaker_than_its_start,
  check_found_is_true,
  check_wins,
  check_radius_zero,
  check_one_trace,
  check_traced_number,
  check_no_captured_constants,
  check_budget,
  check_oracle_calls,
  check_gradients_as_declared,
]
