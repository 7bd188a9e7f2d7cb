"""What cannot be trained is refused in a line that names the flag."""

import jax
import numpy as np
import pytest

from experiments import networks, recipes, train_inputs
from jaxadv import data, models
from tests.experiments import training_cases as cases

_DIGITS = data.load("digits")


def _refused(match, function, *arguments):
  with pytest.raises(SystemExit, match=match):
    function(*arguments)


def test_the_data_set_is_cut():
  found = train_inputs.dataset("digits", None, 70, 64)
  np.testing.assert_array_equal(found.train.images, _DIGITS.train.images[:70])
  assert len(found.test.labels) == len(_DIGITS.test.labels)


@pytest.mark.parametrize(
  ("arguments", "match"),
  [
    (("digits", None, 1261, 1), "^--num_train=1261: .*from 1 to 1260"),
    (("digits", None, 63, 64), "^--batch_size=64 is more than the 63"),
    (("mnist", "/nowhere", 0, 64), "^--dataset=mnist: .*prepare_data"),
  ],
)
def test_data_that_cannot_be(arguments, match):
  _refused(match, train_inputs.dataset, *arguments)


def test_rows_that_cannot_be_shared_out(monkeypatch):
  monkeypatch.setattr(jax, "local_devices", lambda: [None] * 3)
  match = "^--batch_size=64: .*multiple of the 3 devices"
  _refused(match, train_inputs.dataset, "digits", None, 0, 64)


def _model(shape, num_outputs):
  module = models.MLP(features=(4,), num_classes=num_outputs)
  variables = module.init(jax.random.key(0), np.zeros((1, *shape), np.float32))
  return models.bind(module.apply, variables), {"image_shape": list(shape)}


def test_helpers_have_to_fit(monkeypatch):
  stored = {
    "good": _model((8, 8, 1), 10),
    "null": _model((8, 8, 1), 11),
    "wide": _model((28, 28, 1), 10),
  }
  monkeypatch.setattr(networks, "load_model", stored.__getitem__)
  load = train_inputs.helpers
  assert load("ard", ["good"], _DIGITS) == (stored["good"][0],)
  assert load("pgd", [], _DIGITS) == ()
  _refused("^--defence=ard needs --helper_dirs", load, "ard", [], _DIGITS)
  _refused("--defence=pgd takes no helpers", load, "pgd", ["good"], _DIGITS)
  _refused("^--helper_dirs=null .*11 classes", load, "ard", ["null"], _DIGITS)
  _refused("^--helper_dirs=wide is .*28", load, "ard", ["wide"], _DIGITS)


def test_a_helper_that_is_not_there(tmp_path):
  match = r"^--helper_dirs=.*experiments\.train"
  _refused(match, train_inputs.helpers, "ard", [tmp_path / "none"], _DIGITS)


def _check(name, number, model="mlp"):
  plan = cases.plan(name, number=number)
  helpers = (_model((8, 8, 1), 10)[0],) * recipes.RECIPES[name].helpers
  train_inputs.check(plan, helpers, model, _DIGITS)


@pytest.mark.parametrize("name", list(recipes.RECIPES))
def test_the_number_of_each_recipe(name):
  number = recipes.RECIPES[name].number
  _check(name, None)
  if number is None:
    _refused(f"--defence={name} tunes none", _check, name, 3.0)
  else:
    _check(name, float(number))
    for bad in (-1.0, np.inf, np.nan):
      _refused("^--number=.* must be >= 0 and finite", _check, name, bad)


@pytest.mark.parametrize(
  ("name", "number", "match"),
  [
    ("free", 2.5, "replays of a batch of free: must be a whole number"),
    ("fat", 0.5, "must be a whole number"),
    ("free", 0.0, "num_replays must be at least 1"),
    ("fgsm_mixture", 1.5, "share of the clean loss .* alpha must be <= 1"),
    ("distillation", 0.0, "temperature must be > 0"),
    ("mixup", 0.0, "alpha must be > 0"),
  ],
)
def test_numbers_that_a_recipe_cannot_use(name, number, match):
  _refused(match, _check, name, number)


def test_images_that_are_too_small():
  match = "^--model=small_cnn needs images of at least 16 x 16.*8 x 8"
  _refused(match, _check, "none", None, "small_cnn")


def _sees_something(name, side):
  """Whether no layer is left without inputs."""
  module = networks.build_model(name, "digits", 10)
  x = jax.ShapeDtypeStruct((1, side, side, 1), np.float32)
  try:
    variables = jax.eval_shape(module.init, jax.random.key(0), x)
  except ZeroDivisionError:  # How JAX 0.10 and 0.11 scale weights of none.
    return False
  return all(0 not in leaf.shape for leaf in jax.tree.leaves(variables))


@pytest.mark.parametrize("name", list(networks.MODELS))
def test_every_network_takes_the_least_side_that_is_told(name):
  side = networks.SMALLEST_SIDE.get(name, 8)
  assert _sees_something(name, side)
  if name in networks.SMALLEST_SIDE:
    assert not _sees_something(name, side - 1)
