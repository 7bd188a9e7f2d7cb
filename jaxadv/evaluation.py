"""What an attack's results are worth: judged afresh, per example, worst case.

Two numbers that are often mixed up, both stated here: *robust accuracy* counts
every example (one that is wrong from the start is not robust); the *success
rate* counts the examples that the model had right.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxadv import attacks, call_checks, checks, criteria, engine, judge, types

# Whether results are finite, in the ball and in the bounds, see `judge`.
inside = judge.inside
# Distances that the bootstrap holds at once.
_RESAMPLED = 1 << 20


class Summary(NamedTuple):
  """The honest numbers of one or several attacks, as fractions.

  Attributes:
    clean_accuracy: Right at the clean input, of all.
    robust_accuracy: Right at the clean input and under every attack, of all.
    success_rate: Fooled by any attack, of those right at the clean input; NaN
      where there are none.
    num_examples: How many there were.
  """

  clean_accuracy: float
  robust_accuracy: float
  success_rate: float
  num_examples: int


def fooled(
  logits_fn: types.LogitsFn,
  key: jax.Array,
  x_adv: np.ndarray,
  labels: np.ndarray,
  *,
  batch_size: int = 128,
) -> np.ndarray:
  """Whether each input is misclassified [N], by one fresh forward pass.

  A targeted attack, too, is judged by this for robust accuracy. Logits that are
  not finite are misclassified. Neither ball nor bounds are looked at: see
  `inside`.

  Raises:
    TypeError: arguments in another order, inputs that are not float32 or
      float64, labels that are not integers.
    ValueError: inputs that are not finite, labels out of range, a model of one
      logit, nothing to judge.
  """
  x_adv, labels = call_checks.canonical(x_adv), np.asarray(labels)
  call_checks.judgement(logits_fn, key, x_adv, labels)
  return judge.success(
    logits_fn,
    key,
    x_adv,
    labels,
    criteria.misclassified,
    batch_size=batch_size,
  )


def accuracy(
  logits_fn: types.LogitsFn,
  key: jax.Array,
  images: np.ndarray,
  labels: np.ndarray,
  *,
  batch_size: int = 128,
) -> float:
  """The share of inputs that are classified as labelled."""
  wrong = fooled(logits_fn, key, images, labels, batch_size=batch_size)
  return float(1.0 - wrong.mean())


def summary(
  clean_wrong: np.ndarray, fooled_by: Iterable[engine.Record | np.ndarray]
) -> Summary:
  """The worst case per example over attacks.

  Averages over attacks flatter a model: an example is robust only if no attack
  fools it.

  Args:
    clean_wrong: Whether the clean input is misclassified [N].
    fooled_by: For each attack, its record, or whether its result is
      misclassified and where the attack has to stay [N]. The success of a
      targeted attack is another: take `fooled` for it.

  Raises:
    ValueError: a record of an attack that knows no radius, or of a part of the
      examples, or records of different ones.
  """
  clean_wrong = np.asarray(clean_wrong, bool)
  broken = clean_wrong.copy()
  fooled_by = list(fooled_by)
  _same_examples(fooled_by)
  for each in fooled_by:
    broken |= _broken(each, clean_wrong)
  right = ~clean_wrong
  return Summary(
    clean_accuracy=float(right.mean()),
    robust_accuracy=float(1.0 - broken.mean()),
    success_rate=float(broken[right].mean()) if right.any() else float("nan"),
    num_examples=len(right),
  )


def _same_examples(fooled_by: list[engine.Record | np.ndarray]) -> None:
  numbers = [e.index for e in fooled_by if isinstance(e, engine.Record)]
  if any(not np.array_equal(each, numbers[0]) for each in numbers[1:]):
    raise ValueError(
      "fooled_by holds records of different examples (their index differs): "
      "give those of one data set, or take a summary of each"
    )


def _broken(
  result: engine.Record | np.ndarray, clean_wrong: np.ndarray
) -> np.ndarray:
  broken = result
  if isinstance(result, engine.Record):
    if not result.bounded:
      raise ValueError(
        "fooled_by holds the record of an attack without a radius, whose "
        "successes may be at any distance: craft it with "
        "attacks.within(attack, ball)"
      )
    broken = result.success
  broken = np.asarray(broken, bool)
  if broken.shape != clean_wrong.shape:
    raise ValueError(
      f"fooled_by must have a row for each of {len(clean_wrong)} examples, got "
      f"shape {broken.shape}"
    )
  return broken


def marginal_drops(
  clean_wrong: np.ndarray, fooled_by: Mapping[str, np.ndarray]
) -> dict[str, float]:
  """How much robust accuracy each attack alone takes, beyond all others."""
  total = summary(clean_wrong, fooled_by.values()).robust_accuracy
  return {
    name: summary(
      clean_wrong, [fooled_by[other] for other in fooled_by if other != name]
    ).robust_accuracy
    - total
    for name in fooled_by
  }


def robustness_curve(
  attack_fn: Callable[[types.Ball], types.Attack],
  threats: Sequence[types.Ball],
  logits_fn: types.LogitsFn,
  key: jax.Array,
  images: np.ndarray,
  labels: np.ndarray,
  **options: Any,
) -> np.ndarray:
  """Robust accuracy in each ball [K], one compilation for all.

  An example that a smaller ball broke is broken in the larger ones: they are
  nested, so the curve never rises and later attacks see the survivors only. A
  result outside of its ball or the attack's bounds breaks nothing.

  Args:
    attack_fn: Makes the attack in a ball, such as `lambda ball:
      attacks.pgd(ball, num_steps=40, step_size=ball.eps / 10)`.
    threats: Balls of one kind and increasing radii, such as `[balls.Linf(eps)
      for eps in radii]`.
    logits_fn: The model.
    key: A PRNG key.
    images: Inputs [N, ...].
    labels: Their labels [N].
    **options: Passed on to `engine.craft`.

  Raises:
    TypeError: `threats` holds what is no ball.
    ValueError: the radii do not increase; an attack has another ball than it
      was asked for, or does not stop at misclassification.
  """
  for ball in threats:
    checks.ball(ball)
  radii = [float(ball.eps) for ball in threats]
  if radii != sorted(radii):
    raise ValueError(f"the radii of threats must increase, got {radii}")
  labels = np.asarray(labels)
  robust = ~fooled(logits_fn, key, images, labels)
  curve = []
  for ball, eps in zip(threats, radii, strict=True):
    rows = np.flatnonzero(robust)
    if len(rows) and eps > 0:
      x, y = images[rows], labels[rows]
      attack = attacks.within(attack_fn(ball), ball)
      record = engine.craft(
        attack,
        logits_fn,
        key,
        x,
        y,
        criterion=criteria.misclassified,
        index=rows,
        **options,
      )
      robust[rows] = ~record.success
    curve.append(robust.mean())
  return np.asarray(curve)


def minimum_distances(
  clean_wrong: np.ndarray, success: np.ndarray, distance: np.ndarray
) -> np.ndarray:
  """How far the attacker has to go for each example [N].

  0 where the clean input is misclassified, infinite where the search failed:
  neither is left out, or a model would look better for it.

  Args:
    clean_wrong: Whether the clean input is misclassified [N].
    success: Whether the result of the search is misclassified [N].
    distance: Of the result from the clean input, in the search's norm [N].
  """
  found = np.where(success, distance, np.inf)
  return np.where(clean_wrong, 0.0, found)


def accuracy_at(distances: np.ndarray, radii: np.ndarray) -> np.ndarray:
  """Robust accuracy at each radius, all from one minimum-norm run.

  An example is robust at a radius below its distance: at radius 0 this is the
  clean accuracy.

  Args:
    distances: What `minimum_distances` gave [N].
    radii: Radii >= 0 [K], in any order.

  Raises:
    ValueError: a distance is NaN.
  """
  if np.isnan(distances).any():
    raise ValueError(
      f"distances holds {int(np.isnan(distances).sum())} NaN: a failed search "
      "is np.inf, as minimum_distances has it"
    )
  ordered = np.sort(np.asarray(distances))
  broken = np.searchsorted(ordered, np.asarray(radii), side="right")
  return 1.0 - broken / len(ordered)


class Quantile(NamedTuple):
  """A quantile of distances and its bootstrap interval."""

  value: float
  low: float
  high: float


def distance_quantile(
  distances: np.ndarray,
  share: float = 0.5,
  *,
  num_resamples: int = 2000,
  confidence: float = 0.95,
  seed: int = 0,
) -> Quantile:
  """The distance within which `share` of the examples are broken.

  The median by default. Always one of the distances, so infinite ones do no
  harm; infinite where fewer than `share` of the searches succeeded. The
  interval is the percentile bootstrap's (Efron, 1979).

  Args:
    distances: Of the examples to count [N], such as `minimum_distances` of
      those with the clean input right.
    share: In (0, 1).
    num_resamples: Of the bootstrap.
    confidence: Of the interval.
    seed: Of the bootstrap.

  Raises:
    ValueError: no distances, or a share outside of (0, 1).
  """
  distances = np.asarray(distances, np.float64)
  if len(distances) == 0 or not 0 < share < 1:
    raise ValueError(
      f"distances must be some and share in (0, 1), got {len(distances)} "
      f"distances and share={share}"
    )
  # An observed value, never a mean of two: infinity less infinity is no number.
  quantile = functools.partial(np.quantile, method="inverted_cdf")
  ends = (1 - confidence) / 2, (1 + confidence) / 2
  rng = np.random.default_rng(seed)
  resampled = np.empty(num_resamples)
  at_once = max(1, _RESAMPLED // len(distances))
  for part in np.split(resampled, range(at_once, num_resamples, at_once)):
    rows = rng.integers(0, len(distances), (len(part), len(distances)))
    part[:] = quantile(distances[rows], share, axis=1)
  low, high = quantile(resampled, ends)
  return Quantile(float(quantile(distances, share)), float(low), float(high))


def success_against_steps(record: engine.Record, num_steps: int) -> np.ndarray:
  """The share of examples fooled within s steps, for s = 0 .. num_steps."""
  counts = np.bincount(record.steps[record.success], minlength=num_steps + 1)
  return np.cumsum(counts[: num_steps + 1]) / len(record.success)


def confidence_on_mistakes(
  logits_fn: types.LogitsFn,
  key: jax.Array,
  x: np.ndarray,
  labels: np.ndarray,
  *,
  batch_size: int = 128,
) -> np.ndarray:
  """The probability of the predicted class, for each mistake."""
  logits = judge.outputs(logits_fn, key, x, batch_size=batch_size)
  probabilities = np.asarray(jax.nn.softmax(logits))
  wrong = probabilities.argmax(axis=-1) != np.asarray(labels)
  return probabilities.max(axis=-1)[wrong]
