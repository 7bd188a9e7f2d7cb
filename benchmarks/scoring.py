"""The score of AttackBench: how close an attack comes to the best of all.

Every attack gives each example a distance: 0 where the network errs from the
start, infinity where no misclassified point was found. The *envelope* is the
least distance per example over all attacks. With A the area under the curve of
robust accuracy against the radius, from 0 to the largest distance D of the
envelope, and a the accuracy on clean inputs, an attack scores

  1 - (A - A_envelope) / (a D - A_envelope),

1 for the envelope itself and 0 for an attack that finds nothing. The curve is a
staircase, so its area is the mean of `min(distance, D)`, exactly, where
AttackBench draws straight lines between its corners.

Reference: Cina et al., "AttackBench: evaluating gradient-based attacks for
adversarial examples", 2025.
"""

from collections.abc import Iterable

import numpy as np


def envelope(distances: Iterable[np.ndarray]) -> np.ndarray:
  """The least distance of each example [N] over attacks [N] each."""
  return np.min(np.stack(list(distances)), axis=0)


def local_optimality(distance: np.ndarray, best: np.ndarray) -> float:
  """The score of an attack's distances [N] beside the envelope [N].

  Where no attack found anything the envelope is infinite: those examples say
  nothing of any attack and are left out of D, and count as D for every attack.
  NaN where there is nothing to tell attacks apart.
  """
  found = best[np.isfinite(best)]
  farthest = float(found.max(initial=0.0))
  area, best_area = (
    float(np.minimum(values, farthest).mean()) for values in (distance, best)
  )
  accuracy = float(np.mean(best > 0))
  room = accuracy * farthest - best_area
  if room <= 0:
    return float("nan")
  return 1.0 - (area - best_area) / room


def median(distance: np.ndarray, best: np.ndarray) -> float:
  """The median distance of the examples that the network has right."""
  right = best > 0
  return float(np.median(distance[right])) if right.any() else float("nan")


def success_rate(distance: np.ndarray, best: np.ndarray) -> float:
  """The share of those examples for which the attack found a point."""
  right = best > 0
  found = np.isfinite(distance[right])
  return float(found.mean()) if right.any() else float("nan")
