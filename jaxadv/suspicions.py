"""Signs that an evaluation by attacks may overrate a model.

The six flags of AutoAttack, and outputs that are no numbers. Each function
returns messages, none where all is well. They are hints: a model may show a
sign for good reasons. Random draws, gradients and loops of open length are
looked for in the model's program.

Reference: Croce, Hein, "Reliable evaluation of adversarial robustness with an
ensemble of diverse parameter-free attacks", 2020, and the flags of its code.
"""

import itertools
from collections.abc import Collection, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jaxadv import criteria, judge, losses, oracles, programs, types
from jaxadv.engine import batch

Array = jax.Array
Messages = tuple[str, ...]

# Answers to two keys that differ by less, relative to their length, are alike.
_ALIKE = 1e-4
# Sums of probabilities stray from one by no more.
_ROUNDING = 1e-4
# The robust accuracy that queries may take beyond gradients (AutoAttack's).
_ALLOWED = 0.002

_DRAWS = frozenset(
  ("random_bits", "threefry2x32", "rng_bit_generator", "rng_uniform")
)
_LOSSES = {"cross-entropy": losses.cross_entropy, "DLR": losses.dlr}
# How JAX names the operations of a gradient, inside whatever they belong to: no
# documented name, but a gradient has no other mark in a program.
_GRADIENT = "transpose(jvp"


def randomised(
  logits_fn: types.LogitsFn, key: Array, images: np.ndarray, *, batch_size: int
) -> Messages:
  """The outputs differ for two keys, or the program draws random numbers."""
  # Logits of classes that are ruled out are infinite.
  first, second = (
    np.nan_to_num(
      judge.outputs(
        logits_fn, jax.random.fold_in(key, draw), images, batch_size=batch_size
      ).astype(np.float64),
      posinf=0.0,
      neginf=0.0,
    )
    for draw in range(2)
  )
  gap = np.linalg.norm(first - second, axis=-1)
  if np.any(gap > _ALIKE * np.linalg.norm(first, axis=-1)):
    return (
      "the model is randomised: its outputs differ from draw to draw. Attack "
      "means over draws (autoattack.rand) and judge by several (num_draws).",
    )
  if _DRAWS & set(programs.operations(programs.of_model(logits_fn, images))):
    return (
      "the model draws random numbers, though its outputs agree: make sure "
      "that its randomness is not frozen for the evaluation only.",
    )
  return ()


def softmax_output(logits: np.ndarray) -> Messages:
  """Every row [N, C] is a probability distribution."""
  sums = logits.sum(axis=-1)
  if np.all(logits >= 0) and np.allclose(sums, 1.0, rtol=0, atol=_ROUNDING):
    return (
      "the outputs are probabilities: attacks need the logits, since gradients "
      "vanish through a saturated softmax. Remove the final softmax.",
    )
  return ()


def zero_gradients(
  logits_fn: types.LogitsFn,
  key: Array,
  images: np.ndarray,
  labels: np.ndarray,
  *,
  batch_size: int,
) -> Messages:
  """Some clean inputs have no gradient at all, of cross-entropy or of DLR.

  Inputs that are misclassified do not count: there DLR is constant wherever the
  label is third. Gradients that are not finite count as zero, as they do to the
  attacks. All inputs are asked about at once, `batch_size` for the verdicts.
  """
  wrong = judge.success(
    logits_fn,
    key,
    images,
    labels,
    criteria.misclassified,
    batch_size=batch_size,
  )
  if wrong.all():
    return ()
  # Of all inputs, or each number of right ones would be another program.
  with jax.default_matmul_precision("highest"):
    sloping = _sloping(logits_fn, key, images, labels)
  messages = []
  for name, slopes in zip(_LOSSES, sloping, strict=True):
    zero = np.mean(~np.asarray(slopes)[~wrong])
    if zero > 0:
      messages.append(
        f"the input gradient of {name} is zero for {zero:.1%} of the examples "
        "that are right: attacks by gradients are blind there. Look for "
        "saturation, rounding or other parts of the model that have no slope."
      )
  return tuple(messages)


def queries_win(
  robust_accuracy: Mapping[str, float], blind: Collection[str]
) -> Messages:
  """Attacks without gradients broke what those with gradients had left.

  Args:
    robust_accuracy: After each attack, in their order; first of clean inputs.
    blind: The attacks that only ask for outputs, such as Square Attack.
  """
  names = list(robust_accuracy)
  drop, seeing = 0.0, False
  for before, name in itertools.pairwise(names):
    if name not in blind:
      seeing = True
    elif seeing:
      drop += robust_accuracy[before] - robust_accuracy[name]
  if drop > _ALLOWED:
    return (
      f"attacks that see outputs only took {drop:.1%} of robust accuracy "
      "beyond those by gradients, which may be masked. Ask more queries, or "
      "adapt the attack to the model.",
    )
  return ()


def not_finite(logits: np.ndarray, where: str) -> Messages:
  """Some rows [N, C] decide nothing: NaN, or an infinite largest logit.

  Args:
    logits: The outputs.
    where: What they are outputs of, such as "clean inputs".
  """
  share = np.mean(~np.isfinite(logits.max(axis=-1)))
  if share > 0:
    return (
      f"the outputs are not finite for {share:.1%} of the {where}: these count "
      "as misclassified. Look for an overflow in the model or its weights.",
    )
  return ()


def strays(name: str, inside: np.ndarray) -> Messages:
  """An attack that knows its ball left it, or the bounds, in some rows [N]."""
  if inside.all():
    return ()
  return (
    f"{(~inside).sum()} results of {name} left its ball or bounds and count as "
    "failures: an error of the attack.",
  )


def few_classes(num_classes: int) -> Messages:
  """DLR needs three classes and targeted DLR four."""
  if num_classes < 4:
    return (
      f"with {num_classes} classes the losses of DLR give way to simpler ones: "
      "four are needed by the targeted, three by the other.",
    )
  return ()


def optimises(logits_fn: types.LogitsFn, images: np.ndarray) -> Messages:
  """The model optimises at test time, so attacks had better know how.

  The signs are a gradient inside the forward pass, and a loop that runs until
  some condition holds (`while` in the program). Loops of fixed length and
  functions with gradients of their own (`custom_vjp`) are in many a network and
  mean nothing; so an optimisation without gradients, in a fixed number of
  steps, goes unseen. A gradient is told by the name that JAX writes into the
  debug information of a lowered program, which another release may change.
  """
  lowered = jax.jit(programs.ask).lower(logits_fn, *programs.question(images))
  if _GRADIENT in lowered.as_text(debug_info=True):
    sign = "a gradient"
  elif "while" in programs.operations(programs.of_model(logits_fn, images)):
    sign = "a loop of open length"
  else:
    return ()
  return (
    f"the model seems to optimise at test time ({sign} in its forward pass): "
    "attacks that do not adapt to that may overrate it.",
  )


def of_outputs(
  logits_fn: types.LogitsFn, key: Array, images: np.ndarray, *, batch_size: int
) -> Messages:
  """Probabilities, NaN, too few classes, optimisation at test time."""
  logits = judge.outputs(logits_fn, key, images, batch_size=batch_size)
  return (
    softmax_output(logits)
    + not_finite(logits, "clean inputs")
    + few_classes(logits.shape[-1])
    + optimises(logits_fn, images)
  )


@jax.jit
def _sloping(
  logits_fn: types.LogitsFn, key: Array, x: Array, labels: Array
) -> tuple[Array, ...]:
  """Per loss, whether each input [B, ...] has a gradient, as attacks see it."""
  keys = batch.row_keys(key, jnp.arange(len(x)))

  def slopes(loss_fn: types.LossFn) -> Array:
    answer = oracles.loss_and_gradient(logits_fn, loss_fn, keys, x, labels)
    return jnp.any(answer.grad != 0, axis=range(1, x.ndim))

  return tuple(map(slopes, _LOSSES.values()))
