"""The pure driver: inside jit and vmap, its price, what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import (
  attacks,
  balls,
  cascade,
  criteria,
  engine,
  evaluation,
  models,
)
from tests import victims

_KEY = jax.random.key(0)
_X = np.random.default_rng(0).uniform(size=(6, 5, 5, 1)).astype(np.float32)


def _victim(seed=0):
  return victims.ordinary(25, 4, seed)


_Y = victims.logits(_victim(), _X).argmax(axis=1).astype(np.int32)


def _pgd(eps=0.05, **parts):
  return attacks.pgd(balls.Linf(eps), num_steps=4, step_size=eps / 2, **parts)


def _run(attack=None, logits_fn=None, key=_KEY, x=_X, y=_Y, **options):
  return engine.run(
    _pgd() if attack is None else attack,
    _victim() if logits_fn is None else logits_fn,
    key,
    x,
    y,
    **options,
  )


def test_new_weights_radii_and_keys_compile_nothing():
  _run()
  before = victims.CALLS["mixed"]
  _run(_pgd(0.03), _victim(1), jax.random.key(1))
  # Shapes are checked by one abstract call.
  assert victims.CALLS["mixed"] - before == 1


def test_inside_jit_and_under_vmap_over_radii():
  radii = jnp.array([0.0, 0.02, 0.05])

  @jax.jit
  def swept(radii, logits_fn, x):
    return jax.vmap(lambda eps: _run(_pgd(eps), logits_fn, x=x))(radii)

  found = swept(radii, _victim(), _X)
  for eps, x_adv in zip(radii, found, strict=True):
    np.testing.assert_allclose(x_adv, _run(_pgd(float(eps))), atol=1e-6)
  np.testing.assert_array_equal(found[0], _X)


def test_under_vmap_over_models():
  stack = jax.tree.map(
    lambda *leaves: jnp.stack(leaves), _victim(0), _victim(1)
  )
  found = jax.vmap(lambda logits_fn: _run(logits_fn=logits_fn))(stack)
  for seed in range(2):
    np.testing.assert_allclose(
      found[seed], _run(logits_fn=_victim(seed)), atol=1e-6
    )


def test_rows_do_not_depend_on_those_after_them():
  x_adv = _run()
  np.testing.assert_allclose(_run(x=_X[:2], y=_Y[:2]), x_adv[:2], atol=1e-6)
  assert not np.allclose(_run(key=jax.random.key(1)), x_adv, atol=1e-3)


def test_raw_keys_serve_as_typed_ones_do():
  np.testing.assert_array_equal(_run(key=jax.random.PRNGKey(0)), _run())


def test_training_pays_for_its_budget_and_nothing_else():
  logits_fn = victims.counted(_victim())
  attack = _pgd(criterion=criteria.never)
  before = victims.asked()
  x_adv = _run(attack, logits_fn)
  spent = victims.asked() - before
  assert spent["calls"] == attack.num_steps
  assert spent["rows"] == attack.num_steps * len(_X)
  assert not np.array_equal(x_adv, _X)


def test_ends_when_all_rows_are_done():
  logits_fn = victims.counted(_victim())
  before = victims.asked()
  _run(logits_fn=logits_fn, y=(_Y + 1) % 4)
  assert (victims.asked() - before)["calls"] == 1


@pytest.mark.parametrize(
  ("changes", "error", "words"),
  [
    ({"x": (_X * 255).astype(np.uint8)}, TypeError, "x must be floating"),
    ({"x": 2 * _X}, ValueError, "x must lie in bounds"),
    ({"x": _X * np.nan}, ValueError, "NaN"),
    ({"x": _X[0, 0, 0]}, ValueError, "batch axis"),
    ({"y": _Y.astype(np.float32)}, TypeError, "y must hold integer labels"),
    ({"y": _Y + 4}, ValueError, "y must hold labels >= 0 and < 4"),
    ({"y": _Y[:3]}, ValueError, "one row per row of x"),
    ({"y": 1}, ValueError, "one row per row of x"),
    (
      {"logits_fn": jax.tree_util.Partial(lambda keys, x: jnp.zeros((1, 4)))},
      ValueError,
      "one row per input",
    ),
  ],
)
def test_refuses_bad_input(changes, error, words):
  with pytest.raises(error, match=words):
    _run(**changes)


def test_other_bounds():
  attack = _pgd(0.5, bounds=(-1.0, 1.0))
  x = 2 * _X - 1
  x_adv = _run(attack, x=x)
  assert x_adv.min() < -0.9 and x_adv.min() >= -1 and x_adv.max() <= 1
  with pytest.raises(ValueError, match="bounds"):
    _run(x=x)


def test_inside_shard_map_it_says_what_it_needs():
  mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:1]), ("rows",))
  rows = jax.sharding.PartitionSpec("rows")

  def attacked(**options):
    return jax.shard_map(
      lambda x, y: _run(x=x, y=y),
      mesh=mesh,
      in_specs=(rows, rows),
      out_specs=rows,
      **options,
    )(_X, _Y)

  with pytest.raises(ValueError, match="check_vma=False"):
    attacked()
  np.testing.assert_allclose(attacked(check_vma=False), _run(), atol=1e-6)


_PRECISIONS = []


def _listening(w, x):
  _PRECISIONS.append(jax.config.jax_default_matmul_precision)
  return x.reshape(len(x), -1) @ w


def test_multiplies_in_full_float32_whoever_calls():
  model = models.bind(_listening, np.eye(25, 4, dtype=np.float32))
  table = {"pgd": _pgd()}
  with jax.default_matmul_precision("bfloat16"):
    for call in (
      lambda: engine.run(_pgd(), model, _KEY, _X, _Y),
      lambda: engine.craft(_pgd(), model, _KEY, _X, _Y, progress=False),
      lambda: cascade.cascade(table, model, _KEY, _X, _Y, progress=False),
      lambda: evaluation.fooled(model, _KEY, _X, _Y),
    ):
      _PRECISIONS.clear()
      jax.clear_caches()
      call()
      # The first questions, about shapes, are never run.
      assert _PRECISIONS[-1] == "highest"
