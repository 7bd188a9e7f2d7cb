"""Bad input is refused with the argument's name, its value and a remedy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import checks
from tests import victims

_X = np.full((3, 2, 2, 1), 0.5, np.float32)


@pytest.mark.parametrize("value", [0, -1, np.int32(0)])
def test_num_steps_below_one(value):
  with pytest.raises(ValueError, match="num_steps must be at least 1"):
    checks.num_steps(value)


@pytest.mark.parametrize("value", [1.5, True, 3.0])
def test_num_steps_that_is_no_whole_number(value):
  with pytest.raises(TypeError, match="slots must be a whole number"):
    checks.num_steps(value, "slots")


def test_num_steps_may_be_any_integer():
  for value in (1, np.int64(3), jnp.int32(2)):
    checks.num_steps(value)


def test_signs():
  checks.positive("rate", 0.1)
  checks.non_negative("rate", 0.0)
  for bad in (0.0, -1.0, float("nan")):
    with pytest.raises(ValueError, match="rate must be > 0"):
      checks.positive("rate", bad)
  for bad in (-1.0, float("nan"), np.array([1.0, -1.0])):
    with pytest.raises(ValueError, match="rate must be >= 0"):
      checks.non_negative("rate", bad)
  checks.below_one("rate", 0.9)
  checks.at_most_one("rate", 1.0)
  for bad in (1.0, 1.5, float("nan")):
    with pytest.raises(ValueError, match=f"rate must be < 1, got rate={bad}"):
      checks.below_one("rate", bad)
  for bad in (1.5, float("nan"), np.array([0.5, 1.5])):
    with pytest.raises(ValueError, match="rate must be <= 1"):
      checks.at_most_one("rate", bad)


@pytest.mark.parametrize("value", [1.0, (0.0,), [0.0, 1.0], (1.0, 0.0), (0, 0)])
def test_bounds_that_are_none(value):
  with pytest.raises(ValueError, match="bounds"):
    checks.bounds(value)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, bool])
def test_inputs_that_are_not_floats(dtype):
  with pytest.raises(TypeError, match=r"images must be .* divide by 255"):
    checks.inputs(_X.astype(dtype), (0.0, 1.0), "images")


def test_inputs_without_a_batch_axis():
  with pytest.raises(ValueError, match=r"x\[None\]"):
    checks.inputs(_X[0, 0, 0], (0.0, 1.0))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("xp", [np, jnp])
def test_inputs_that_are_not_finite(value, xp):
  x = _X.copy()
  x[1, 0, 0, 0] = value
  with pytest.raises(ValueError, match="NaN or infinite"):
    checks.inputs(xp.asarray(x), (0.0, 1.0))


@pytest.mark.parametrize("value", [-1e-3, 1.001, 255.0])
def test_inputs_out_of_bounds(value):
  x = _X.copy()
  x[2, 0, 1, 0] = value
  with pytest.raises(ValueError, match="must lie in bounds"):
    checks.inputs(x, (0.0, 1.0))
  checks.inputs(x, None)
  checks.inputs(x, (-300.0, 300.0))


def test_inputs_are_not_looked_at_while_traced():
  shapes = jax.eval_shape(
    lambda x: (checks.inputs(x, (0.0, 1.0)), x)[1], _X * 500
  )
  assert shapes.shape == _X.shape
  checks.inputs(_X[:0], (0.0, 1.0))


def test_labels():
  checks.labels(np.array([0, 2]), 3)
  checks.labels(np.eye(3), 3)  # Soft labels pass unseen.
  for bad in ([0, 3], [-1, 0]):
    with pytest.raises(ValueError, match="y must hold labels >= 0 and < 3"):
      checks.labels(np.array(bad), 3)
  with pytest.raises(ValueError, match="spans"):
    checks.labels(np.array([-1, 0]), None)
  with pytest.raises(TypeError, match="integer labels"):
    checks.labels(np.array([0.0, 1.0]), 3)


def test_targets_with_other_rows_than_the_inputs():
  checks.batch(_X, (np.zeros(3), np.zeros((3, 4))))
  for bad in (np.zeros(2), 0, (np.zeros(3), np.zeros(4))):
    with pytest.raises(ValueError, match="one row per row of x"):
      checks.batch(_X, bad)


def _one_row(keys, x):
  del keys
  return jnp.zeros((1, 5)) + jnp.sum(x)


def _no_row(keys, x):
  del keys
  return jnp.sum(x)


def _two_outputs(keys, x):
  del keys
  return {"a": x, "b": jnp.sum(x, axis=(1, 2, 3))}


def test_model_tells_its_classes_or_is_refused():
  assert checks.model(victims.ordinary(4, 5), _X) == 5
  assert checks.model(_two_outputs, _X) is None
  for bad in (_one_row, _no_row):
    with pytest.raises(ValueError, match="keep the batch axis first"):
      checks.model(bad, _X)


def test_probabilities_are_warned_of():
  logits = np.array([[0.2, 0.3, 0.5], [0.0, 0.0, 1.0]], np.float32)
  with pytest.warns(UserWarning, match="probabilities"):
    checks.warn_of_probabilities(logits)
  # Warnings are errors here, so silence is tested, too.
  checks.warn_of_probabilities(logits - 0.5)
  checks.warn_of_probabilities(2 * logits)


def test_keys_of_the_default_generator_pass_typed_or_raw():
  checks.key(jax.random.key(0))
  checks.key(jax.random.PRNGKey(0))
  checks.key(np.asarray(jax.random.PRNGKey(0)))
  jax.jit(checks.key)(jax.random.key(0))
  jax.jit(checks.key)(jax.random.PRNGKey(0))


@pytest.mark.parametrize(
  "value", [0, None, "0", np.uint32(0), np.arange(2), np.zeros(4, np.uint32)]
)
def test_what_is_no_key_is_refused(value):
  with pytest.raises(TypeError, match=r"seed must be .* jax.random.key\(0\)"):
    checks.key(value, "seed")


@pytest.mark.parametrize("make", [jax.random.key, jax.random.PRNGKey])
def test_an_array_of_keys_is_refused(make):
  keys = jax.random.split(make(0), 3)
  with pytest.raises(ValueError, match=r"shape \(3,\): take one, key\[0\]"):
    checks.key(keys)


@pytest.mark.parametrize("generator", ["rbg", "unsafe_rbg"])
def test_generators_whose_draws_depend_on_the_batch_are_refused(generator):
  typed = jax.random.key(0, impl=generator)
  with jax.default_prng_impl(generator):
    raw = jax.random.PRNGKey(0)
    with pytest.raises(TypeError, match=f"{generator}.*impl='threefry2x32'"):
      checks.key(raw)
  for key in (checks.key, jax.jit(checks.key)):
    with pytest.raises(TypeError, match=f"{generator}.*impl='threefry2x32'"):
      key(typed)
