"""The page about one or several models under the same attacks."""

import os
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from experiments import assessment, attack_table, scores
from jaxadv import evaluation, judge
from jaxadv.report import curves, images, page, tables

Outcomes = Mapping[str, assessment.Outcome]
Reach = attack_table.Reach

_NUM_IMAGES = 8


def write(
  path: str | os.PathLike,
  title: str,
  outcomes: Outcomes,
  found: Mapping[str, scores.Numbers],
  *,
  opening: Sequence[page.Section] = (),
) -> None:
  """Writes one self-contained HTML page.

  Args:
    path: The file.
    title: Of the page.
    outcomes: By the name of the model.
    found: The numbers of each, as `scores.numbers` gives them.
    opening: What comes before all else.
  """
  first = next(iter(found.values()))
  sections = [
    *opening,
    _tables(found),
    *_curve(outcomes, found, first["norm"]),
    *_distances(outcomes, first["norm"]),
    _budget(outcomes),
    _confidence(outcomes),
    *(
      _images(name, outcome, first["norm"])
      for name, outcome in outcomes.items()
    ),
    _settings(outcomes, first),
  ]
  page.write(path, title, sections, subtitle=scores.threat(first))


def _tables(found: Mapping[str, scores.Numbers]) -> page.Section:
  items: list[tables.Table] = []
  if len(found) > 1:
    items.append(scores.comparison(found))
  items += [scores.table(numbers) for numbers in found.values()]
  return page.Section(
    "Accuracy under attack",
    "An example counts as robust only if no attack under the threat model "
    "fools the model on it: the worst case, not the mean, is the result.",
    items,
  )


def _curve(
  outcomes: Outcomes, found: Mapping[str, scores.Numbers], norm: str
) -> list[page.Section]:
  drawn, bands = {}, {}
  for name, outcome in outcomes.items():
    if outcome.plan.radii:
      curve = found[name]["curve"]
      clean = found[name]["clean_accuracy"], found[name]["clean_interval"]
      drawn[name] = ([0.0, *curve["radii"]], [clean[0], *curve["accuracy"]])
      low, high = np.asarray([clean[1], *curve["interval"]]).T
      bands[name] = (low, high)
  if not drawn:
    return []
  figure = curves.robustness_curve(
    drawn, xlabel=f"radius ε ({norm})", bands=bands
  )
  text = (
    "Under PGD, with steps in proportion to the radius. A model that stands at "
    "radii where any image can become any other (half the range of the pixels "
    "in linf) hides its gradients rather than being robust. Shaded: 95 % "
    "intervals."
  )
  return [page.Section("Accuracy against the radius", text, [figure])]


def _distances(outcomes: Outcomes, norm: str) -> list[page.Section]:
  drawn = {}
  for name, outcome in outcomes.items():
    for attack in outcome.attacked:
      if attack_table.reach(attack) is Reach.NEAREST:
        distances = scores.nearest(outcome, attack, norm)
        radii = np.unique([0.0, *distances[np.isfinite(distances)]])
        accuracy = evaluation.accuracy_at(distances, radii)
        drawn[f"{name}: {attack}"] = (radii, accuracy)
  if not drawn:
    return []
  figure = curves.robustness_curve(drawn, xlabel=f"distance ({norm})")
  text = (
    "Examples that no found adversarial input is as near to, from one run of "
    "each minimum-norm attack; a failed search counts as infinitely far."
  )
  return [page.Section("Accuracy against the distance", text, [figure])]


def _budget(outcomes: Outcomes) -> page.Section:
  figures = []
  for name, outcome in outcomes.items():
    right = ~outcome.clean_wrong
    series = {
      attack: (attacked.record.steps[right], attacked.success[right])
      for attack, attacked in outcome.attacked.items()
      if attack_table.reach(attack) is Reach.BALL
    }
    if series and right.any():
      figures.append(curves.success_against_steps(series, title=name))
  return page.Section(
    "Success against steps",
    "Of the examples that are right at the clean input. Curves that still "
    "climb at their end say that more steps would break more.",
    figures,
  )


def _confidence(outcomes: Outcomes) -> page.Section:
  figures = []
  for name, outcome in outcomes.items():
    victim, plan = outcome.victim, outcome.plan
    inputs = {"clean": victim.images} | {
      attack: attacked.record.x_adv
      for attack, attacked in outcome.attacked.items()
    }
    confidences = {
      attack: evaluation.confidence_on_mistakes(
        victim.logits_fn,
        jax.random.key(plan.seed),
        x,
        victim.labels,
        batch_size=plan.slots,
      )
      for attack, x in inputs.items()
    }
    figures.append(curves.confidence_histogram(confidences, title=name))
  return page.Section(
    "Confidence on mistakes",
    "The probability that the model gives to its wrong answers.",
    figures,
  )


def _images(name: str, outcome: assessment.Outcome, norm: str) -> page.Section:
  items = []
  for attack, attacked in outcome.attacked.items():
    won = np.flatnonzero(~outcome.clean_wrong & attacked.success)
    if len(won):
      distance = attacked.record.distance[norm][won]
      ordered = won[np.argsort(distance, kind="stable")]
      shown = np.linspace(0, len(won) - 1, min(len(won), _NUM_IMAGES))
      rows = ordered[shown.round().astype(int)]
      items += [attack, _grid(outcome, attacked.record.x_adv, rows)]
    else:
      items.append(f"{attack}: no success.")
  text = (
    "Successes among examples that were right, from the nearest to the "
    f"farthest ({norm})."
  )
  return page.Section(f"Examples: {name}", text, items)


def _grid(outcome: assessment.Outcome, x_adv: np.ndarray, rows: np.ndarray):
  victim, plan = outcome.victim, outcome.plan
  logits = judge.outputs(
    victim.logits_fn,
    jax.random.key(plan.seed),
    x_adv[rows],
    batch_size=plan.slots,
  )
  return images.adversarial_grid(
    victim.images[rows],
    x_adv[rows],
    victim.labels[rows],
    outcome.clean_logits[rows].argmax(axis=-1),
    logits.argmax(axis=-1),
    victim.class_names,
    num=_NUM_IMAGES,
  )


def _settings(outcomes: Outcomes, first: scores.Numbers) -> page.Section:
  plan = next(iter(outcomes.values())).plan
  rows = [
    ["examples", str(first["num_examples"])],
    ["norm", first["norm"]],
    ["radius", f"{plan.eps:.6g}"],
    ["attacks", ", ".join(plan.attacks)],
    ["steps of the iterative ones", str(plan.settings.num_steps or "default")],
    ["their length / eps", str(plan.settings.step_size or "the attack's own")],
    ["restarts", str(plan.settings.num_restarts)],
    ["seed", str(plan.seed)],
    ["JAX", f"{jax.__version__} on {jax.devices()[0].device_kind}"],
  ]
  table = tables.Table("", ["setting", "value"], rows)
  return page.Section("Settings", "", [table])
