"""What drivers and judges check of a whole call before anything compiles."""

import inspect
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxadv import checks, criteria, types


def model(logits_fn: types.LogitsFn, x: Any) -> int | None:
  """Refuses a model whose output is not one row per input.

  Returns:
    The number of classes, or None where the output is no [B, C] array.
  """
  return _num_classes(_outputs(logits_fn, x))


def _outputs(logits_fn: types.LogitsFn, x: Any) -> types.PyTree:
  _two_arguments(logits_fn)
  # Two rows, or a model without its batch axis would pass for one of one row.
  x = jax.ShapeDtypeStruct((2, *x.shape[1:]), x.dtype)
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2))
  outputs = jax.eval_shape(logits_fn, keys, x)
  for leaf in jax.tree.leaves(outputs):
    if not leaf.shape or leaf.shape[0] != x.shape[0]:
      raise ValueError(
        f"logits_fn must return one row per input, got shape {leaf.shape} for "
        f"{x.shape[0]} inputs: keep the batch axis first"
      )
  return outputs


def _num_classes(outputs: types.PyTree) -> int | None:
  if isinstance(outputs, jax.ShapeDtypeStruct) and outputs.ndim == 2:
    return outputs.shape[1]
  return None


def _two_arguments(logits_fn: Any) -> None:
  remedy = "bind it with models.bind(apply_fn, variables)"
  if not callable(logits_fn):
    raise TypeError(
      f"logits_fn must be a model (keys, x) -> logits, got "
      f"{type(logits_fn).__name__}: {remedy}"
    )
  if any(callable(leaf) for leaf in jax.tree.leaves(logits_fn)):
    raise TypeError(
      f"logits_fn must be a pytree whose leaves are its weights, got the plain "
      f"function {logits_fn!r}: {remedy}, or take jax.tree_util.Partial(fn) of "
      "a function without weights"
    )
  try:
    inspect.signature(logits_fn).bind(None, None)
  except TypeError as error:
    raise TypeError(
      f"logits_fn must take (keys, x), got {logits_fn!r} ({error}): {remedy}"
    ) from error
  except ValueError:  # A built-in without a signature.
    return


def judgement(
  logits_fn: types.LogitsFn, key: Any, x_adv: Any, labels: Any
) -> None:
  """Refuses what a judge cannot answer: one label and logits per input."""
  _two_arguments(logits_fn)
  checks.key(key)
  checks.inputs(x_adv, None, "x_adv")
  checks.batch(x_adv, labels, ("x_adv", "labels"))
  if np.ndim(labels) != 1:
    raise ValueError(
      f"labels must hold one integer per input, got shape {np.shape(labels)}: "
      "turn one-hot labels into integers with labels.argmax(-1)"
    )
  num_classes = more_than_one_class(model(logits_fn, x_adv[:1]))
  checks.labels(labels, num_classes, "labels")


def more_than_one_class(num_classes: int | None) -> int | None:
  """Refuses models of one logit; passes the number on."""
  if num_classes == 1:
    raise ValueError(
      "logits_fn must return a logit for each class, got one per input: for a "
      "binary model with the logit z return [0, z]"
    )
  return num_classes


def attack_call(
  attack: types.Attack,
  logits_fn: types.LogitsFn,
  key: Any,
  x: Any,
  y: types.PyTree,
  name: str = "x",
) -> None:
  """All that a driver checks before it compiles anything."""
  checks.attack(attack)
  threat = attack.threat
  _two_arguments(logits_fn)
  checks.key(key)
  checks.inputs(x, threat.bounds, name)
  checks.batch(x, y)
  _radius(threat, x)
  outputs = _outputs(logits_fn, x[:1])
  if hasattr(y, "dtype") and y.ndim == 1:
    if jnp.issubdtype(y.dtype, jnp.integer):
      more_than_one_class(_num_classes(outputs))
    checks.labels(y, _num_classes(outputs))
  _one_verdict(threat.criterion, outputs, y)
  # Attacks refuse in `init` shapes that they cannot work on.
  row = jax.tree.map(lambda leaf: leaf[:1], (x, y))
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
  jax.eval_shape(attack.init, keys, *row)


def _one_verdict(criterion, outputs, y) -> None:
  def first(leaf):
    return jax.ShapeDtypeStruct(leaf.shape[1:], jnp.result_type(leaf))

  row = jax.tree.map(first, (outputs, y))
  try:
    verdict = jax.eval_shape(criterion, *row)
  except (TypeError, ValueError, IndexError) as error:
    raise TypeError(
      f"y does not fit the attack's criterion {_named(criterion)} ({error}): "
      "untargeted attacks want integer labels [B], targeted ones what their "
      "docstring says"
    ) from error
  if verdict.dtype != bool:
    raise TypeError(
      f"the criterion {_named(criterion)} must return a bool, got "
      f"{verdict.dtype}: end it with a comparison, such as "
      "jnp.argmax(outputs) != y"
    )
  if verdict.shape != ():
    shapes = [leaf.shape for leaf in jax.tree.leaves(row[1])]
    raise ValueError(
      f"y must hold one target per row for the criterion {_named(criterion)}, "
      f"got {shapes} for one row: turn one-hot labels into integers with "
      "y.argmax(-1)"
    )


def _named(criterion: Any) -> str:
  fun = getattr(criterion, "fun", criterion)
  return getattr(fun, "__name__", repr(fun))


def _radius(threat: types.Threat, x: Any) -> None:
  """Refuses what is no radius, or is beyond all that the bounds allow."""
  if threat.ball is None:
    return
  eps, width = threat.ball.eps, threat.bounds[1] - threat.bounds[0]
  if np.shape(eps) != ():
    raise ValueError(
      f"eps must be one radius for all examples, got shape {np.shape(eps)}: "
      "attack the examples of each radius by themselves, or jax.vmap "
      "engine.run over balls"
    )
  if not isinstance(eps, jax.core.Tracer) and not np.asarray(eps) >= 0:
    raise ValueError(f"eps must be a radius >= 0, got eps={np.asarray(eps)}")
  traced = isinstance(eps, jax.core.Tracer) or isinstance(
    width, jax.core.Tracer
  )
  if traced or not np.all(np.isfinite(np.asarray(width))):
    return
  with jax.ensure_compile_time_eval():
    widest = threat.ball.norm(jnp.full(x.shape[1:], width, jnp.float32))
  if isinstance(widest, jax.core.Tracer):  # As inside of jax.shard_map.
    return
  if np.isfinite(widest) and np.any(np.asarray(eps) > 1.001 * float(widest)):
    raise ValueError(
      f"eps={np.asarray(eps).max():g} is beyond all that bounds="
      f"{threat.bounds} allow: radii are in the units of the inputs, 8 / 255 "
      "for 8 pixel values of images in [0, 1]; for images in [0, 255] give the "
      "attack bounds=(0.0, 255.0)"
    )


def judged_by(
  threat: types.Threat, criterion: types.Criterion | None
) -> types.Criterion:
  """The criterion of an attack's judge: the attack's own, said once.

  Args:
    threat: Of the attack.
    criterion: What the caller said; only of use where the attack never stops.

  Raises:
    ValueError: two criteria contradict, or there is none.
  """
  silent = criteria.is_never(threat.criterion)
  if criterion is None:
    if silent:
      raise ValueError(
        "criterion must be given for an attack with criteria.never, which "
        "spends its whole budget and does not say what a success is: "
        "criterion=criteria.misclassified"
      )
    return threat.criterion
  criterion = types.hashable(criterion)
  if not silent and not types.same(threat.criterion, criterion):
    raise ValueError(
      f"criterion={_named(criterion)} contradicts that of the attack, "
      f"{_named(threat.criterion)}: give it to the attack's factory alone"
    )
  return criterion


def canonical(x: Any) -> np.ndarray:
  """As a NumPy array of the type that JAX will give it."""
  x = np.asarray(x)
  return x.astype(jax.dtypes.canonicalize_dtype(x.dtype), copy=False)


def warn_of_outputs(logits: Any) -> None:
  """Warns of outputs [N, C] that are not finite, or probabilities."""
  logits = np.asarray(logits)
  if logits.ndim != 2 or logits.size == 0:
    return
  if bad := int((~np.isfinite(logits.max(axis=-1))).sum()):
    warnings.warn(
      f"logits_fn returns NaN or infinite logits for {bad} of the first "
      f"{len(logits)} clean inputs: these count as misclassified. Look for an "
      "overflow in the model or its weights.",
      stacklevel=3,
    )
  sums = logits.sum(axis=-1)
  if np.all(logits >= 0) and np.allclose(sums, 1.0, atol=1e-3):
    warnings.warn(
      "logits_fn looks as if it returned probabilities: attacks need the "
      "logits, since gradients vanish through a saturated softmax. Remove the "
      "model's final softmax.",
      stacklevel=3,
    )
