"""Recorded results of other libraries, which lie beside the checkout."""

import functools
import gzip
import pathlib

import numpy as np
import pytest

from benchmarks import recorded, victims
from jaxadv import types

_SHARED = pathlib.Path(__file__).resolve().parents[1].parent / "shared"
_FOLDER = _SHARED / "golden"
_IMAGES = _SHARED / "data" / "mnist" / "t10k-images-idx3-ubyte.gz"
_LABELS = _SHARED / "data" / "mnist" / "t10k-labels-idx1-ubyte.gz"

needed = pytest.mark.skipif(
  not ((_FOLDER / "nets.npz").exists() and _IMAGES.exists()),
  reason="the recorded results lie in ../shared, which is absent",
)


@functools.cache
def net(name: str) -> types.LogitsFn:
  """The network `nat` (trained as usual) or `adv` (adversarially)."""
  kind = dict(zip(("nat", "adv"), victims.KINDS, strict=True))[name]
  nets = victims.variables(str(_FOLDER / "nets.npz"), eps=0.3)
  return victims.bind(nets[kind])


def examples(num_examples: int) -> tuple[np.ndarray, np.ndarray]:
  """The first images [N, 28, 28, 1] of the MNIST test set, and labels [N]."""
  images = np.frombuffer(
    gzip.decompress(_IMAGES.read_bytes()), np.uint8, -1, 16
  )
  labels = np.frombuffer(gzip.decompress(_LABELS.read_bytes()), np.uint8, -1, 8)
  x = images.reshape(-1, 28, 28, 1)[:num_examples].astype(np.float32) / 255
  return x, labels[:num_examples].astype(np.int32)


def results(net_name: str, run: str | None = None) -> dict[str, np.ndarray]:
  """What was recorded of a net, or of a run against it, by column."""
  prefix = net_name if run is None else f"{net_name}/{run}"
  return recorded.columns(_FOLDER / "results.npz", prefix)
