"""The contract in 64-bit mode, where JAX's default types are other ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import attacks, balls, engine
from tests import contract, victims
from tests.attacks import contract_test

_TYPES = [jnp.float32, jnp.float64]
# Each differs from the others in what it keeps or draws.
_FAST = {
  "pgd-l1",
  "restarts-l2",
  "multi_targeted_nearest",
  "auto_pgd-linf",
  "square-linf",
  "ddn",
  "fmn_l0",
  "alma",
  "sigma_zero",
  "pdpgd_l0",
  "carlini_wagner",
  "lbfgs",
  "brendel_bethge_linf",
}
_each_row = pytest.mark.parametrize(
  "row", [pytest.param(row, id=row.name) for row in contract_test.ROWS]
)
_each_type = pytest.mark.parametrize("dtype", _TYPES)


@pytest.fixture(autouse=True)
def _x64():
  with jax.enable_x64(True):
    contract.examples()  # Outside of any trace.
    yield


def _described(state):
  return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state)


@_each_type
@_each_row
def test_no_step_changes_a_type(row, dtype):
  attack = row.make(row.numbers[0])
  start = jax.eval_shape(functools.partial(contract.start, row, dtype))
  after, _ = jax.eval_shape(attack.step, contract.arguments(row)[0], start)
  assert start.x_adv.dtype == dtype
  assert _described(start) == _described(after)


@_each_row
def test_takes_numbers_of_more_digits_than_the_inputs_have(row):
  attack = row.make(np.float64(row.numbers[0]))
  logits_fn, keys, x, y = contract.arguments(row)
  end = jax.eval_shape(contract.drive, attack, logits_fn, keys, x, y)
  assert x.dtype == end.state.x_adv.dtype == jnp.float32


@pytest.mark.parametrize(
  "row",
  [
    pytest.param(
      row, id=row.name, marks=() if row.name in _FAST else pytest.mark.slow
    )
    for row in contract_test.ROWS
  ],
)
@_each_type
def test_keeps_the_contract(row, dtype):
  x, _ = contract.examples()
  x = x.astype(dtype)
  first = contract.result(row, x=x).state
  again = contract.result(row, x=x).state
  assert first.x_adv.dtype == dtype
  np.testing.assert_array_equal(first.x_adv, again.x_adv)
  contract.assert_valid(row, first.x_adv)
  end = contract.wins(row, first.x_adv[contract.AMPLE])
  assert end.sum() > contract.wins(row, jnp.asarray(x)).sum()
  assert end[np.asarray(first.found[contract.AMPLE])].all()


@_each_type
def test_craft_refills_its_slots(dtype):
  x, labels = contract.examples()
  record = engine.craft(
    attacks.fgsm(balls.Linf(1.0)),
    victims.ordinary(contract.SIZE, contract.CLASSES),
    jax.random.key(0),
    x.astype(dtype),
    labels.astype(np.int64),
    slots=2,
    progress=False,
  )
  assert record.x_adv.dtype == dtype
  assert record.success.any()
