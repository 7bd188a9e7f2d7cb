"""What a result belongs to, as text that a later process can compare.

Functions are told apart by what they do: by their programs, with the arrays
that these have captured, and not by their names alone. Two models of one
factory, two lambdas, two optax rules differ in these alone. An attack's program
is written against a stand-in for the model, so that it says nothing of the
model and costs the same for a large one.

What a program hides in Python (`models.from_callable`) has no text that lasts.
Such a model is also asked about a few inputs, and its answers are compared as
numbers: rounding them would put answers near an edge on either side of it, from
machine to machine.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np

from jaxadv import judge, oracles, programs, types

Array = jax.Array

# A number for the meaning of all that is kept under a fingerprint.
_FORMAT = 1
# Inputs about which a model behind Python is asked: some for the labels alone
# that a model may answer with.
_ASKED = 32
# What rounding may change in the answers, as a share of the largest.
_TOLERANCE = 1e-3


def of_model(logits_fn: types.LogitsFn, images: np.ndarray) -> dict[str, Any]:
  """Weights and program, backward pass included, of a model."""
  with jax.default_matmul_precision("highest"):
    question = (logits_fn, *programs.question(images))
    try:
      program = _with_gradient.trace(*question).jaxpr
    # Whatever a model raises that has no gradient.
    except Exception:
      program = _forward.trace(*question).jaxpr
  found: dict[str, Any] = {"model": digest(logits_fn, program)}
  if programs.leaves_device(program):
    found["answers"] = _answers(logits_fn, images[:_ASKED])
  return found


def of_attack(
  attack: types.Attack,
  logits_fn: types.LogitsFn,
  images: np.ndarray,
  y: types.PyTree,
  criterion: types.Criterion | None = None,
) -> str:
  """Numbers and program of an attack, and of what judges it.

  Args:
    attack: The kernel.
    logits_fn: Any model with the outputs of the one that is attacked.
    images: Inputs [N, ...], of which the shape of a row and the type count.
    y: What the attack wants [N, ...], of which the same counts.
    criterion: The judge's, where it is not the attack's.
  """
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2))
  x, y = jax.tree.map(_two_rows, (images, y))
  outputs, tree = jax.tree.flatten(jax.eval_shape(logits_fn, keys, x))
  stand_in = jax.tree_util.Partial(_StandIn(tuple(outputs), tree))
  judged = attack.threat.criterion if criterion is None else criterion
  whole = (attack, types.hashable(judged))
  with jax.default_matmul_precision("highest"):
    program = _crafting.trace(*whole, stand_in, keys, x, y).jaxpr
  return digest(whole, program)


def versions() -> dict[str, Any]:
  """The packages that made a result.

  JAX's version counts: the text of a program is of one version alone, so there
  is no telling whether it is the same, and its results may differ in bits.
  """
  try:
    mine = importlib.metadata.version("jaxadv")
  except importlib.metadata.PackageNotFoundError:
    mine = "not installed"
  return {"versions": f"jaxadv {mine}, JAX {jax.__version__}, format {_FORMAT}"}


def fingerprint(
  attack: types.Attack,
  logits_fn: types.LogitsFn,
  key: Array,
  images: np.ndarray,
  y: types.PyTree,
  index: np.ndarray,
) -> str:
  """What a call of `craft` is about: not slots, devices or the judge."""
  parts = versions() | of_model(logits_fn, images)
  parts["data set"] = digest(images, y, index)
  parts["key or seed"] = digest(key)
  parts["attack"] = of_attack(attack, logits_fn, images, y)
  return json.dumps(parts)


def differences(theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> str:
  """What another fingerprint differs in, in words; "" for nothing."""
  if theirs.get("versions") != mine["versions"]:
    return f"version ({theirs.get('versions')}; this is {mine['versions']})"
  found = [
    part
    for part in mine
    if part != "answers" and theirs.get(part) != mine[part]
  ]
  if "answers" in mine and not _close(theirs.get("answers"), mine["answers"]):
    found = ["model", *(part for part in found if part != "model")]
  return ", ".join(found)


def compared(theirs: str, mine: str) -> str:
  """As `differences`, of what `fingerprint` returned, or something else."""
  try:
    found = json.loads(theirs)
  except ValueError:
    found = None
  return differences(found if isinstance(found, dict) else {}, json.loads(mine))


def _close(theirs: Any, mine: list[float]) -> bool:
  if theirs is None or len(theirs) != len(mine):
    return False
  scale = np.abs(mine).max(initial=0.0)
  return np.allclose(theirs, mine, rtol=0.0, atol=_TOLERANCE * scale)


def _answers(logits_fn: types.LogitsFn, images: np.ndarray) -> list[float]:
  """One number for the outputs of each row."""
  outputs = judge.outputs(
    logits_fn, jax.random.key(0), images, batch_size=len(images)
  )
  rows = [
    np.asarray(leaf, np.float64).reshape(len(images), -1)
    for leaf in jax.tree.leaves(outputs)
  ]
  # Logits of classes that a model rules out are infinite.
  every = np.nan_to_num(
    np.concatenate(rows, axis=1), nan=7.0, posinf=11.0, neginf=-11.0
  )
  return (every @ np.cos(np.arange(every.shape[1]))).tolist()


@jax.jit
def _forward(logits_fn, keys, x) -> types.PyTree:
  return logits_fn(keys, x)


@jax.jit
def _with_gradient(logits_fn, keys, x) -> types.PyTree:
  # A rule for gradients that the model brings along is read only when used.
  outputs, pull_back = jax.vjp(lambda x: logits_fn(keys, x), x)
  return outputs, pull_back(outputs)


@jax.jit
def _crafting(attack, criterion, logits_fn, keys, x, y) -> types.PyTree:
  state, outputs = attack.step(logits_fn, attack.init(keys, x, y))
  verdict = oracles.satisfied(criterion, outputs, y)
  ball = attack.threat.ball
  norms = None if ball is None else jax.vmap(ball.norm)(state.x_adv - x)
  return state, outputs, verdict, norms


@dataclasses.dataclass(frozen=True)
class _StandIn:
  """A model of given outputs whose program is short; reads keys and inputs.

  Equal ones share a program.
  """

  outputs: tuple[jax.ShapeDtypeStruct, ...]
  tree: Any

  def __call__(self, keys: Array, x: Array) -> types.PyTree:
    rows = x.shape[0]
    words = jax.random.key_data(keys).reshape(rows, -1).astype(x.dtype)
    told = jnp.sum(x.reshape(rows, -1), axis=1) + jnp.sum(words, axis=1)

    def shaped(leaf):
      # Some attacks ask about more rows than they have.
      column = told.reshape(rows, *(1 for _ in leaf.shape[1:]))
      answer = jnp.broadcast_to(column, (rows, *leaf.shape[1:]))
      return answer.astype(leaf.dtype)

    return jax.tree.unflatten(self.tree, map(shaped, self.outputs))


def _two_rows(leaf: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct((2, *leaf.shape[1:]), jnp.result_type(leaf))


def digest(*values: Any) -> str:
  """Of pytrees, programs and other digests, the same in every process."""
  found = hashlib.blake2b(digest_size=16)
  for value in values:
    if isinstance(value, jax.extend.core.ClosedJaxpr):
      _program(value, found.update)
      continue
    if isinstance(value, str):
      found.update(_text(value))
      continue
    leaves, tree = jax.tree.flatten(value)
    found.update(_text(tree))
    for leaf in leaves:
      _array(leaf, found.update)
  return found.hexdigest()


def _text(value: Any) -> bytes:
  """As text without addresses, which differ from process to process."""
  return re.sub(r"0x[0-9a-f]+", "", f"{value};").encode()


def _array(value: Any, write: Callable[[bytes], None]) -> None:
  if jnp.issubdtype(jnp.result_type(value), jax.dtypes.prng_key):
    write(_text(jax.random.key_impl(value)))
    value = jax.random.key_data(value)
  value = np.ascontiguousarray(value)
  write(_text((value.dtype, value.shape)))
  write(value.tobytes())


def _program(closed: Any, write: Callable[[bytes], None]) -> None:
  """Every operation of a closed jaxpr, and its constants by value.

  The printed form would abridge arrays, and numbers variables as they come.
  """
  _operations(closed.jaxpr, write)
  for constant in closed.consts:
    _array(constant, write)


def _operations(jaxpr: Any, write: Callable[[bytes], None]) -> None:
  number: dict[Any, int] = {}

  def variable(var):
    if hasattr(var, "val"):  # A literal.
      _array(var.val, write)
      write(_text(var.aval))
    else:
      place = number.setdefault(var, len(number))
      write(_text((place, var.aval)))

  for var in (*jaxpr.constvars, *jaxpr.invars):
    variable(var)
  for equation in jaxpr.eqns:
    write(_text(equation.primitive.name))
    _parameter(equation.params, write)
    for var in (*equation.invars, *equation.outvars):
      variable(var)
  for var in jaxpr.outvars:
    variable(var)


def _parameter(value: Any, write: Callable[[bytes], None]) -> None:
  if hasattr(value, "consts") and hasattr(value, "jaxpr"):
    _program(value, write)
  elif hasattr(value, "eqns"):
    _operations(value, write)
  elif isinstance(value, dict):
    for name in sorted(value, key=str):
      write(_text(name))
      _parameter(value[name], write)
  elif isinstance(value, tuple | list):
    write(_text(len(value)))
    for part in value:
      _parameter(part, write)
  elif isinstance(value, frozenset | set):
    write(_text(sorted(map(str, value))))
  elif hasattr(value, "__array__") and not isinstance(value, type):
    _array(value, write)
  elif callable(value):
    # Rules of gradients and functions of Python: their text would not last.
    write(_text(getattr(value, "__name__", type(value).__name__)))
  else:
    write(_text(value))
