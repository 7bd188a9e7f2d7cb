"""The pure driver: one batch, until every row is done or out of budget."""

import jax
import jax.numpy as jnp

from jaxadv import call_checks, oracles, types

Array = jax.Array


def run(
  attack: types.Attack,
  logits_fn: types.LogitsFn,
  key: Array,
  x: Array,
  y: types.PyTree,
) -> Array:
  """Attacks one batch; usable inside `jit`, `vmap` and a training step.

  A batch-level `while_loop` that ends when every row is done or out of budget:
  with `criteria.never` it makes exactly `attack.num_steps` oracle calls. Row i
  uses the key `fold_in(key, i)`, so its result does not depend on the rows
  after it, nor on the batch size. Weights, radii and step sizes are arguments
  of the compiled program: new ones compile nothing. Called outside of any other
  program or mapping, it multiplies in full float32; inside, as that does.

  Args:
    attack: The kernel.
    logits_fn: The model, bound by `models.bind`.
    key: A PRNG key.
    x: Inputs [B, ...] in the bounds of the attack, float32 or float64.
    y: What the attack's loss wants, one row per input (labels [B]).

  Returns:
    The adversarial inputs [B, ...]; judge them with `evaluation`.

  Raises:
    TypeError: arguments in another order, inputs of another type, labels that
      are not integers.
    ValueError: inputs out of bounds or not finite, a radius beyond the bounds,
      labels out of range, shapes that do not fit.
  """
  call_checks.attack_call(attack, logits_fn, key, x, y)
  if isinstance(x, jax.core.Tracer):
    return _within_a_program(attack, logits_fn, key, x, y)
  with jax.default_matmul_precision("highest"):
    return _run(attack, logits_fn, key, x, y)


def _within_a_program(attack, logits_fn, key, x, y) -> Array:
  try:
    return _run(attack, logits_fn, key, x, y)
  except TypeError as error:
    # The loops of attacks begin with constants, which count as equal on all
    # devices, and end with what differs: the checks of shard_map refuse that.
    if "shard_map" not in str(error):
      raise
    raise ValueError(
      "engine.run inside of jax.shard_map needs jax.shard_map(..., "
      "check_vma=False)"
    ) from error


@jax.jit
def _run(attack, logits_fn, key, x, y) -> Array:
  keys = row_keys(key, jnp.arange(len(x)))
  state = attack.init(keys, x, y)

  def unfinished(carry):
    step, state = carry
    return (step < attack.num_steps) & ~jnp.all(state.done)

  def advance(carry):
    step, state = carry
    return step + 1, masked_step(attack, logits_fn, ~state.done, state)

  return jax.lax.while_loop(unfinished, advance, (0, state))[1].x_adv


def row_keys(key: Array, index: Array) -> Array:
  """One key per row, of its index in the data set."""
  return jax.vmap(jax.random.fold_in, (None, 0))(key, index)


def masked_step(
  attack: types.Attack, logits_fn: types.LogitsFn, rows: Array, state
):
  """One step of the rows [B] that are True; the others stay as they are."""
  new, _ = attack.step(logits_fn, state)
  return oracles.choose(rows, new, state)
