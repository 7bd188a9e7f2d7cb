"""Timing on machines that other work shares: ratios within rounds."""

import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np


class Timing(NamedTuple):
  """Seconds of one program.

  Attributes:
    first: The first call, which traces and compiles.
    rounds: The later calls, one per round.
  """

  first: float
  rounds: np.ndarray

  @property
  def median(self) -> float:
    """Seconds of one warm call."""
    return float(np.median(self.rounds))

  @property
  def compilation(self) -> float:
    """Seconds of tracing and compiling: the first call less a warm one."""
    return max(self.first - self.median, 0.0)


def clocks(program: Callable[[], Any]) -> np.ndarray:
  """Wall and processor seconds (all threads) until one call's result is there.

  Other work on the machine disturbs the second less, but it says nothing about
  how well a program uses several cores, and threads that wait may count.
  """
  start = np.asarray([time.perf_counter(), time.process_time()])
  jax.block_until_ready(program())
  return np.asarray([time.perf_counter(), time.process_time()]) - start


def seconds(program: Callable[[], Any]) -> float:
  """Wall seconds until the result of one call is there."""
  return float(clocks(program)[0])


def interleaved(
  programs: Mapping[Hashable, Callable[[], Any]], rounds: int
) -> dict[Any, Timing]:
  """Times programs in turn: each once per round, after a first call of each.

  Other work on the machine slows neighbours in a round alike, so compare
  programs by the median of their ratios within rounds (`ratio`).
  """
  first = {name: seconds(program) for name, program in programs.items()}
  rows = [
    [seconds(program) for program in programs.values()] for _ in range(rounds)
  ]
  columns = dict(zip(programs, np.asarray(rows).T, strict=True))
  return {name: Timing(first[name], columns[name]) for name in programs}


def ratio(numerator: Timing, denominator: Timing) -> float:
  """The median over rounds of the ratio of two programs' seconds."""
  return float(np.median(numerator.rounds / denominator.rounds))
