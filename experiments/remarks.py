"""What the notes below a table of results say."""

from collections.abc import Mapping
from typing import Any

from experiments import attack_table

Numbers = dict[str, Any]
Reach = attack_table.Reach


def of(found: Mapping[str, Numbers]) -> str:
  """What has to be said of these results in particular."""
  first = next(iter(found.values()))
  notes = []
  for name in first["attacks"]:
    each = {model: numbers["attacks"][name] for model, numbers in found.items()}
    notes += _remarks(name, first["norm"], each)
  broken = [name for each in found.values() for name in outside(each)]
  if broken:
    notes.append(
      f"ERROR: {', '.join(sorted(set(broken)))} left the ball or the bounds; "
      "those results do not count."
    )
  return " ".join(notes)


def _remarks(name: str, norm: str, each: Mapping[str, Numbers]) -> list[str]:
  """Of one attack on each model."""
  match attack_table.reach(name):
    case Reach.ANYWHERE:
      return [
        f"{name} has no radius and is not part of the worst case; its median "
        f"{norm} distance is "
        + ", ".join(
          f"{_number(numbers['median_distance'][norm])} ({model})"
          for model, numbers in each.items()
        )
        + "."
      ]
    case Reach.NEAREST:
      return [
        f"{name} looks for the nearest; median {norm} distance of those right "
        "at the clean input, failures as infinite, and its 95 % interval: "
        + ", ".join(
          f"{_interval(numbers['distance_quantiles']['0.5'])} ({model})"
          for model, numbers in each.items()
          if "distance_quantiles" in numbers
        )
        + "."
      ]
  return [
    f"{name} on {model}: "
    + ", ".join(
      f"{stage} {percent(rate)}" for stage, rate in numbers["stages"].items()
    )
    + "."
    + "".join(f" WARNING: {text}" for text in numbers["suspicions"])
    for model, numbers in each.items()
    if "stages" in numbers
  ]


def _interval(quantile: Mapping[str, float | None]) -> str:
  value, low, high = (
    "∞" if quantile[part] is None else _number(quantile[part])
    for part in ("value", "low", "high")
  )
  return f"{value} [{low}, {high}]"


def outside(found: Numbers) -> list[str]:
  """The attacks that left the ball or the bounds: errors, every one."""
  return [
    name for name, each in found["attacks"].items() if each["num_outside"]
  ]


def _number(value: float | None) -> str:
  return "none" if value is None else f"{value:.3g}"


def percent(rate: float | None) -> str | None:
  """A rate as tables show it."""
  return None if rate is None else f"{100 * rate:.1f} %"
