"""Flags that several scripts have, and kinds of flags.

Each function defines a flag of the script that calls it: it is in the --help of
that script and in its flags.txt.
"""

import math
from collections.abc import Mapping
from typing import Any

from absl import flags

from experiments import common

flags.disclaim_key_flags()


class Number(flags.ArgumentParser[float]):
  """Parses a flag that is a number or a fraction such as `8/255`."""

  syntactic_help = "a number, or a fraction such as 8/255"

  def parse(self, argument: str | float) -> float:
    """Returns the number.

    Raises:
      ValueError: it is none.
    """
    try:
      top, slash, bottom = str(argument).partition("/")
      return float(top) / (float(bottom) if slash else 1.0)
    except (ValueError, ZeroDivisionError):
      raise ValueError(f"{argument!r} is not {self.syntactic_help}") from None

  def flag_type(self) -> str:
    """The name of the type in help texts."""
    return "number"


def number(name: str, default: float | None, text: str) -> flags.FlagHolder:
  """A flag that is a number or a fraction."""
  return flags.DEFINE(
    Number(), name, default, text, serializer=flags.ArgumentSerializer()
  )


def positive(name: str, default: float | None, text: str) -> flags.FlagHolder:
  """One that is > 0 and finite; None where that is the default."""
  holder = number(name, default, text)
  flags.register_validator(
    name,
    lambda value: value is None or 0 < value < math.inf,
    "must be > 0 and finite",
  )
  return holder


def workdir() -> flags.FlagHolder[str]:
  """Where everything is kept."""
  return flags.DEFINE_string(
    "workdir", None, "Folder of this run.", required=True
  )


def data_dir() -> flags.FlagHolder[str | None]:
  """Where data sets are."""
  return flags.DEFINE_string(
    "data_dir",
    None,
    "Where data sets are; by default $TFDS_DATA_DIR or ~/tensorflow_datasets.",
  )


def norm() -> flags.FlagHolder[str]:
  """The norm of the threat model, in `common.BALLS`."""
  return flags.DEFINE_enum(
    "norm", "linf", list(common.BALLS), "Norm of the threat model."
  )


def eps(default: float) -> flags.FlagHolder[float]:
  """The radius of the threat model; checked together with `norm`."""
  holder = positive(
    "eps",
    default,
    "Radius of the threat model, of inputs in [0, 1]; usual are 0.3 for MNIST "
    "and 8/255 for CIFAR-10.",
  )
  flags.register_multi_flags_validator(["norm", "eps"], _not_in_pixels)
  return holder


def _not_in_pixels(values: Mapping[str, Any]) -> bool:
  if values["norm"] == "linf" and values["eps"] > 1:
    raise flags.ValidationError(
      "inputs are in [0, 1], so a radius above 1 means nothing: write 8/255 "
      "for 8 pixel values"
    )
  return True


def slots() -> flags.FlagHolder[int]:
  """How many examples are attacked at once."""
  return flags.DEFINE_integer(
    "slots",
    256,
    "Examples attacked at once on each device; on a CPU on all cores together.",
    lower_bound=1,
  )


def seed() -> flags.FlagHolder[int]:
  """The seed of all that is random."""
  return flags.DEFINE_integer(
    "seed", 0, "Seed.", lower_bound=0, upper_bound=2**31 - 1
  )
