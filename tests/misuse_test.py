"""What people get wrong, and the one message that each of it is answered with.

A row is a call that cannot be right. It has to end before anything compiles,
with an error that names the argument and what to do.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxadv import (
  attacks,
  autoattack,
  balls,
  cascade,
  criteria,
  engine,
  evaluation,
  losses,
  models,
  norms,
)
from jaxadv.defences import adversaries
from tests import victims

PARTIAL = jax.tree_util.Partial
KEY = jax.random.key(0)
X = np.random.default_rng(0).uniform(size=(6, 5, 5, 1)).astype(np.float32)
Y = np.arange(6, dtype=np.int32) % 4
LINF = balls.Linf(0.1)


def model():
  return victims.ordinary(25, 4)


def pgd(ball=LINF, **parts):
  return attacks.pgd(ball, num_steps=2, step_size=0.05, **parts)


def run(attack=None, model_=None, key=KEY, x=X, y=Y):
  attack = pgd() if attack is None else attack
  return engine.run(attack, model() if model_ is None else model_, key, x, y)


def craft(attack=None, model_=None, key=KEY, x=X, y=Y, **options):
  attack = pgd() if attack is None else attack
  model_ = model() if model_ is None else model_
  options = {"progress": False, "slots": 4} | options
  return engine.craft(attack, model_, key, x, y, **options)


def chain(table=None, x=X, y=Y, key=KEY, model_=None, **options):
  table = {"pgd": pgd()} if table is None else table
  model_ = model() if model_ is None else model_
  options = {"progress": False, "slots": 4} | options
  return cascade.cascade(table, model_, key, x, y, **options)


def fooled(model_=None, key=KEY, x=X, y=Y):
  return evaluation.fooled(model() if model_ is None else model_, key, x, y)


def one_logit(keys, x):
  del keys
  return jnp.sum(x, axis=(1, 2, 3))[:, None]


def one_argument(x):
  return x.reshape(len(x), -1)[:, :4]


def one_row(keys, x):
  del keys
  return x.reshape(1, -1)[:, :4]


TARGETED = {
  "loss_fn": losses.targeted_cross_entropy,
  "criterion": criteria.classified_as,
}

# What is called with bad inputs, keys, labels or models, and its words.
CALLS = {
  "images of uint8": (lambda f: f(x=(X * 255).astype(np.uint8)), "floating"),
  "images of float16": (lambda f: f(x=X.astype(np.float16)), "float32"),
  "images of bfloat16": (
    lambda f: f(x=jnp.asarray(X, jnp.bfloat16)),
    "float32",
  ),
  "images of NaN": (lambda f: f(x=X * np.nan), "NaN or infinite"),
  "one image without its batch axis": (
    lambda f: f(x=X[0, 0, 0], y=Y[:1]),
    "batch axis",
  ),
  "no images": (lambda f: f(x=X[:0], y=Y[:0]), "at least one example"),
  "labels one-hot": (lambda f: f(y=np.eye(4, dtype=np.float32)[Y]), "argmax"),
  "labels of floats": (lambda f: f(y=Y.astype(np.float32)), "integer labels"),
  "labels too large": (lambda f: f(y=Y + 4), ">= 0 and < 4"),
  "labels below zero": (lambda f: f(y=Y - 1), "labels >= 0"),
  "too few labels": (lambda f: f(y=Y[:3]), "one row per row"),
  "one label for all": (lambda f: f(y=1), "one row per row"),
  "a model of one logit": (
    lambda f: f(model_=PARTIAL(one_logit), y=np.zeros(6, np.int32)),
    "a logit for each class",
  ),
  "a model of one argument": (
    lambda f: f(model_=PARTIAL(one_argument)),
    "models.bind",
  ),
  "a model without its batch axis": (
    lambda f: f(model_=PARTIAL(one_row)),
    "one row per input",
  ),
  "a plain function for a model": (
    lambda f: f(model_=one_logit),
    "whose leaves are its weights",
  ),
  "no model but weights": (lambda f: f(model_=np.ones(3)), "models.bind"),
  "an integer for a key": (lambda f: f(key=0), "jax.random.key"),
  "a seed for a key": (lambda f: f(key=np.int32(3)), "jax.random.key"),
  "a key for each row": (
    lambda f: f(key=jax.random.split(KEY, 6)),
    "one PRNG key",
  ),
  "a key of rbg": (lambda f: f(key=jax.random.key(0, impl="rbg")), "threefry"),
}
# Of attacks only: judges have no bounds of their own.
ATTACK_CALLS = {
  "images in [0, 255]": (lambda f: f(x=X * 255), "must lie in bounds"),
  "images in [-1, 1]": (lambda f: f(x=2 * X - 1), "must lie in bounds"),
}
# Of one attack: a cascade has several.
ONE_ATTACK = {
  "a radius in pixel values": (
    lambda f: f(pgd(balls.Linf(8.0))),
    "8 / 255",
  ),
  "an L2 radius in pixel values": (
    lambda f: f(pgd(balls.L2(128.0))),
    "beyond all that bounds",
  ),
  "bounds that the images leave": (
    lambda f: f(pgd(bounds=(0.4, 0.6))),
    "must lie in bounds",
  ),
  "a class for an attack": (lambda f: f(attacks.pgd), "factory"),
  "model and attack swapped": (lambda f: f(model(), pgd()), "the order is"),
  "labels for an attack with targets": (
    lambda f: f(pgd(**TARGETED), y=np.eye(4, dtype=np.float32)[Y]),
    "argmax",
  ),
  "a label where a pair is wanted": (
    lambda f: f(pgd(criterion=criteria.misclassified_pair)),
    "does not fit the attack's criterion",
  ),
}


def _rows():
  for name, (call, words) in CALLS.items():
    for f in (run, craft, chain, fooled):
      yield f"{f.__name__}, {name}", lambda call=call, f=f: call(f), words
  for name, (call, words) in ATTACK_CALLS.items():
    for f in (run, craft, chain):
      yield f"{f.__name__}, {name}", lambda call=call, f=f: call(f), words
  for name, (call, words) in ONE_ATTACK.items():
    for f in (run, craft):
      yield f"{f.__name__}, {name}", lambda call=call, f=f: call(f), words
  yield from FACTORIES
  yield from DRIVERS


FACTORIES = [
  ("a string for a radius", lambda: balls.Linf("8/255"), "8 / 255"),
  ("a negative radius", lambda: balls.L2(-1.0), "radius >= 0"),
  ("a radius of NaN", lambda: balls.L1(float("nan")), "radius >= 0"),
  (
    "a radius of NaN on the device",
    lambda: run(pgd(balls.Linf(jnp.asarray(jnp.nan)))),
    "radius >= 0",
  ),
  (
    "a negative radius on the device",
    lambda: craft(pgd(balls.L2(jnp.asarray(-0.1)))),
    "radius >= 0",
  ),
  (
    "a radius for each example",
    lambda: craft(pgd(balls.Linf(np.full(6, 0.1, np.float32)))),
    "one radius for all examples",
  ),
  (
    "a criterion of whole numbers",
    lambda: chain(
      {"pgd": pgd(criterion=lambda z, y: (z.argmax() != y).astype(jnp.int32))}
    ),
    "must return a bool",
  ),
  (
    "a folder for a checkpoint",
    lambda: craft(checkpoint="tests"),
    "name a file in it",
  ),
  (
    "a distance of NaN",
    lambda: evaluation.accuracy_at(np.array([np.nan, 1.0]), [0.5]),
    "np.inf",
  ),
  (
    "records of different examples",
    lambda: evaluation.summary(
      np.zeros(6, bool), [craft(), craft(index=np.arange(6, 12))]
    ),
    "different examples",
  ),
  ("a number for a ball", lambda: attacks.fgsm(0.1), "balls.Linf"),
  (
    "no step size",
    lambda: attacks.pgd(LINF, num_steps=2, step_size=0.0),
    "step_size",
  ),
  (
    "a step back",
    lambda: attacks.pgd(LINF, num_steps=2, step_size=-0.1),
    "step_size",
  ),
  ("no steps", lambda: attacks.auto_pgd(LINF, num_steps=0), "at least 1"),
  (
    "half a step",
    lambda: attacks.auto_pgd(LINF, num_steps=2.5),
    "whole number",
  ),
  (
    "steps that are true",
    lambda: attacks.fmn(norms.L2, num_steps=True),
    "whole",
  ),
  ("bounds upside down", lambda: pgd(bounds=(1.0, 0.0)), "bounds"),
  ("bounds of one number", lambda: pgd(bounds=255.0), "pair"),
  ("a ball for a norm", lambda: attacks.fmn(LINF), "no radius"),
  ("no ball for a norm", lambda: attacks.deepfool("l2"), "norms.L2"),
  ("Auto-PGD in L1", lambda: attacks.auto_pgd(balls.L1(1.0)), "auto_pgd_l1"),
  ("Square in L0", lambda: attacks.square(balls.L0(3)), "L0"),
  (
    "AutoAttack in L0",
    lambda: autoattack.standard(balls.L0(3), 10),
    "balls.Linf, L2 and L1",
  ),
  (
    "AutoAttack of one class",
    lambda: autoattack.standard(LINF, 1),
    "at least 2",
  ),
  ("restarts of a model", lambda: attacks.restarts(model(), 2), "factory"),
  ("no restarts", lambda: attacks.restarts(pgd(), 0), "num_restarts"),
  ("no draws", lambda: attacks.eot(pgd(), 0), "num_samples"),
  ("patience below zero", lambda: adversaries.friendly(pgd(), -1), "tau"),
  (
    "a second ball",
    lambda: attacks.within(pgd(), balls.Linf(0.2)),
    "contradicts",
  ),
  ("a ball of a number", lambda: attacks.within(pgd(), 0.1), "balls.Linf"),
  (
    "an optimiser that is none",
    lambda: attacks.projected_gradient("adam", optax.sgd(0.1), num_steps=1),
    "balls.Linf",
  ),
  (
    "a threshold beyond one",
    lambda: criteria.confidence_below(1.5),
    "threshold",
  ),
  (
    "a model of no classes",
    lambda: models.from_callable(lambda x: x, 0),
    "num_classes",
  ),
]
DRIVERS = [
  ("no slots", lambda: craft(slots=0), "slots"),
  ("slots of a fraction", lambda: chain(slots=2.5), "slots"),
  (
    "another criterion",
    lambda: craft(criterion=criteria.classified_as),
    "contradicts",
  ),
  (
    "no criterion at all",
    lambda: craft(pgd(criterion=criteria.never)),
    "criterion must be given",
  ),
  ("too few numbers", lambda: craft(index=np.arange(3)), "index"),
  (
    "too many targets for the model",
    lambda: craft(
      attacks.multi_targeted(
        pgd(loss_fn=losses.targeted_dlr, criterion=criteria.misclassified_pair),
        9,
      )
    ),
    "num_targets",
  ),
  ("a cascade of nothing", lambda: chain({}), "names"),
  ("a cascade of paths", lambda: chain({"a/b": pgd()}), "names"),
  (
    "a cascade of two radii",
    lambda: chain({"a": pgd(), "b": pgd(balls.Linf(0.2))}),
    "same ball",
  ),
  (
    "a cascade of two ranges",
    lambda: chain({"a": pgd(), "b": pgd(bounds=(0.0, 2.0))}),
    "same ball",
  ),
  (
    "a cascade and another ball",
    lambda: chain(ball=balls.Linf(0.2)),
    "same ball",
  ),
  (
    "a cascade without a ball",
    lambda: chain({"fmn": attacks.fmn(norms.L2)}),
    "ball must be given",
  ),
  (
    "a cascade of two aims",
    lambda: chain({"a": pgd(), "b": pgd(**TARGETED)}),
    "criterion",
  ),
  ("no draws of a verdict", lambda: chain(num_draws=0), "num_draws"),
  (
    "a summary of distances",
    lambda: evaluation.summary(
      np.zeros(6, bool), [craft(attacks.fmn(norms.L2, num_steps=2))]
    ),
    "attacks.within",
  ),
  (
    "a summary of a part",
    lambda: evaluation.summary(np.zeros(6, bool), [np.zeros(3, bool)]),
    "a row for each of 6",
  ),
  (
    "radii that fall",
    lambda: evaluation.robustness_curve(
      pgd, [balls.Linf(0.2), LINF], model(), KEY, X, Y
    ),
    "must increase",
  ),
  (
    "a quantile of nothing",
    lambda: evaluation.distance_quantile(np.zeros(0)),
    "distances",
  ),
  (
    "results of another shape",
    lambda: evaluation.inside(LINF, X, X[:3]),
    "shape",
  ),
]


@pytest.mark.parametrize(
  ("call", "words"),
  [pytest.param(call, words, id=name) for name, call, words in _rows()],
)
def test_is_refused_with_a_remedy(call, words):
  with pytest.raises((TypeError, ValueError)) as caught:
    call()
  message = str(caught.value)
  assert words in message
  # An error of ours, not one from deep inside of JAX.
  assert "jaxadv" in caught.traceback[-1].path.as_posix()
  assert len(message) < 500


def test_there_are_enough():
  assert len(list(_rows())) >= 80
