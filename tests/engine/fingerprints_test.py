"""What tells functions apart, and what does not."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxadv import attacks, balls, criteria, losses, models, norms
from jaxadv.engine import fingerprints
from tests import victims

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_X, _Y = victims.blobs(40)
_W = np.random.default_rng(0).normal(size=(25, 4)).astype(np.float32)
_BALL = balls.Linf(0.1)


def _closure(w):
  return jax.tree_util.Partial(lambda keys, x: x.reshape(len(x), -1) @ w)


def _with_rule(scale):
  """The identity, whose gradient is what the rule says."""

  @jax.custom_vjp
  def identity(x):
    return x

  identity.defvjp(lambda x: (x, None), lambda _, g: (scale * g,))
  return jax.tree_util.Partial(
    lambda keys, x: identity(x).reshape(len(x), -1) @ _W
  )


def _nested(w):
  """Captured inside a loop."""

  def logits_fn(keys, x):
    del keys
    z = x.reshape(len(x), -1)
    return jax.lax.fori_loop(0, 2, lambda i, z: jnp.tanh(z @ w), z)

  return jax.tree_util.Partial(logits_fn)


def _asked(scale):
  """Behind Python."""
  return models.from_callable(
    lambda images: scale * images.reshape(len(images), -1) @ _W, 4
  )


def _model(logits_fn):
  return {"versions": ""} | fingerprints.of_model(logits_fn, _X)


@pytest.mark.parametrize(
  "make",
  [
    lambda scale: victims.linear(scale * _W, np.zeros(4)),
    lambda scale: _closure(scale * _W),
    lambda scale: _closure(jnp.asarray(scale * _W)),
    lambda scale: _nested(scale * np.eye(25, dtype=np.float32)),
    _with_rule,
    _asked,
  ],
  ids=["weights", "numpy", "jax", "loop", "gradient", "python"],
)
def test_models_of_one_factory(make):
  one, again, other = (_model(make(scale)) for scale in (1.0, 1.0, 2.0))
  assert fingerprints.differences(one, again) == ""
  assert fingerprints.differences(one, other) == "model"


def test_answers_of_python_may_be_rounded_otherwise():
  one, near = _model(_asked(1.0)), _model(_asked(1.0 + 1e-6))
  assert one["answers"] != near["answers"]
  assert fingerprints.differences(one, near) == ""


def test_infinite_answers_are_compared():
  def model(logit):
    fn = lambda images: np.full((len(images), 4), logit, np.float32)
    return _model(models.from_callable(fn, 4))

  assert not fingerprints.differences(model(-np.inf), model(-np.inf))
  assert fingerprints.differences(model(-np.inf), model(1.0)) == "model"
  assert not fingerprints.differences(model(0.0), model(0.0))
  assert fingerprints.differences(model(0.0), model(1e-20)) == "model"


def test_models_without_gradients_have_a_fingerprint():
  one = _model(victims.query_only(25, 4))
  assert "answers" not in one
  assert fingerprints.differences(one, _model(victims.ordinary(25, 4)))


def _pgd(**options):
  options = {"num_steps": 3, "step_size": 0.02} | options
  return attacks.pgd(_BALL, **options)


def _optax(rate):
  return attacks.projected_gradient(_BALL, optax.rmsprop(rate), num_steps=3)


def _start(w):
  return _pgd(start=lambda key, x, ball, bounds: jnp.full_like(x, 0.01) * w)


def _loss(power):
  return _pgd(
    loss_fn=lambda logits, y: losses.cross_entropy(logits, y) ** power
  )


def _judged(least):
  return _pgd(
    criterion=lambda logits, y: (logits.argmax() != y) & (logits.max() > least)
  )


@pytest.mark.parametrize(
  "make",
  [
    _optax,
    _start,
    _loss,
    _judged,
    lambda size: _pgd(step_size=size / 100),
    lambda count: _pgd(num_steps=int(count)),
    lambda count: attacks.restarts(_pgd(), int(count)),
  ],
  ids=["optax", "start", "loss", "criterion", "step", "budget", "restarts"],
)
def test_attacks_of_one_factory(make):
  one, again, other = (
    fingerprints.of_attack(make(number), victims.trained(), _X, _Y)
    for number in (1.0, 1.0, 2.0)
  )
  assert one == again != other


def test_balls_with_the_same_numbers_differ():
  one, other = (
    fingerprints.of_attack(
      attacks.pgd(ball(0.1), step_size=0.1), victims.trained(), _X, _Y
    )
    for ball in (balls.Linf, balls.L2)
  )
  assert one != other


def test_an_attack_says_nothing_of_its_model_and_much_of_its_judge():
  model = victims.trained()
  one = fingerprints.of_attack(_pgd(), model, _X, _Y)
  assert one == fingerprints.of_attack(
    _pgd(), victims.ordinary(25, 4), _X[:3], _Y[:3]
  )
  never = _pgd(criterion=criteria.never)
  judged = (
    fingerprints.of_attack(never, model, _X, _Y, criterion)
    for criterion in (criteria.misclassified, criteria.classified_as)
  )
  assert len({one, *judged}) == 3


def _words(differ: dict) -> str:
  mine = {"versions": "2", "model": "a", "data set": "b", "key or seed": "c"}
  return fingerprints.differences(mine | differ, mine)


def test_differences_are_named():
  assert _words({}) == ""
  assert _words({"model": "x", "key or seed": "y"}) == "model, key or seed"
  assert _words({"versions": "1", "model": "x"}) == "version (1; this is 2)"


@pytest.mark.parametrize("theirs", ["", "5a4de3", "[1]", "{}", "null"])
def test_what_is_no_fingerprint_differs(theirs):
  mine = json.dumps({"versions": "2", "model": "a"})
  assert fingerprints.compared(theirs, mine) == "version (None; this is 2)"


def _everything() -> str:
  found = [
    fingerprints.fingerprint(
      attack, model, jax.random.key(0), _X, _Y, np.arange(40)
    )
    for attack in (_optax(0.5), attacks.fab(norms.Linf), attacks.square(_BALL))
    for model in (victims.linear(_W, np.zeros(4)), _nested(np.eye(25)))
  ]
  found.append(
    fingerprints.fingerprint(
      attacks.square(_BALL),
      _asked(1.0),
      jax.random.key(0),
      _X,
      _Y,
      np.arange(40),
    )
  )
  return json.dumps(found)


def test_processes_and_devices_agree():
  outputs = []
  for seed, devices in (("1", 1), ("2", 3)):
    done = subprocess.run(
      [sys.executable, __file__],
      env=os.environ
      | {
        "PYTHONHASHSEED": seed,
        "PYTHONPATH": str(_ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
      },
      capture_output=True,
      text=True,
      timeout=300,
      check=False,
    )
    assert done.returncode == 0, done.stderr
    outputs.append(json.loads(done.stdout))
  for one, other in zip(*outputs, strict=True):
    assert not fingerprints.differences(json.loads(one), json.loads(other))


if __name__ == "__main__":
  print(_everything())
