"""Flags that several scripts have, and kinds of flags.

Each function defines a flag of the script that calls it: it is in the --help of
that script and in its flags.txt.
"""

import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from absl import flags

from experiments import common

flags.disclaim_key_flags()

# Images of 32 x 32 in colour: RobustBench's Linf and L2 radii, and 12 in L1, of
# Maini et al. ("Adversarial robustness against the union of multiple
# perturbation models", 2020) and Croce and Hein ("Mind the box", 2021). Chosen
# on CIFAR-10, and taken over for the others.
_COLOUR = {"linf": 8 / 255, "l2": 0.5, "l1": 12.0}
# The usual radius, by data set and norm. MNIST: Madry et al. (2018) in Linf,
# Maini et al. in L2 and L1. Fashion-MNIST: Wong and Kolter (2018) in Linf, a
# third of MNIST's; so are the others, for want of a custom. Digits: our choice,
# in each norm about twice the median distance at which FMN fools the undefended
# network (0.10, 0.56 and 1.6 on 100 test images).
RADII = {
  "digits": {"linf": 0.2, "l2": 1.0, "l1": 3.0},
  "mnist": {"linf": 0.3, "l2": 2.0, "l1": 10.0},
  "fashion_mnist": {"linf": 0.1, "l2": 2 / 3, "l1": 10 / 3},
  "cifar10": _COLOUR,
  "cifar100": _COLOUR,
  "svhn_cropped": _COLOUR,
}


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


def eps() -> flags.FlagHolder[Any]:
  """The radius of the threat model; checked together with `norm`.

  None until `settle_eps`, where it is not given.
  """
  holder = positive(
    "eps",
    None,
    "Radius of the threat model, of inputs in [0, 1]; by default the usual one "
    "of norm and data set, such as 0.3 for linf on mnist and 8/255 on cifar10.",
  )
  flags.register_multi_flags_validator(["norm", "eps"], _not_in_pixels)
  return holder


def _not_in_pixels(values: Mapping[str, Any]) -> bool:
  eps = values["eps"]
  if eps is not None and values["norm"] == "linf" and eps > 1:
    raise flags.ValidationError(
      "inputs are in [0, 1], so a radius above 1 means nothing: write 8/255 "
      "for 8 pixel values"
    )
  return True


def settle_eps(workdir: pathlib.Path, dataset: Callable[[], str]) -> None:
  """Gives `--eps` a value where it has none, so that flags.txt tells it.

  That with which the folder's run has begun, or else that of `RADII`.

  Args:
    workdir: Of the run.
    dataset: Finds the name of the data set.
  """
  if flags.FLAGS.eps is not None:
    return
  begun = [
    line.removeprefix("--eps=")
    for line in common.begun_with(workdir)
    if line.startswith("--eps=")
  ]
  usual = lambda: RADII[dataset()][flags.FLAGS.norm]
  flags.FLAGS["eps"].value = Number().parse(begun[0]) if begun else usual()


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
