"""Recorded results of other libraries, which lie beside the checkout."""

import functools
import gzip
import pathlib

import jax
import numpy as np
import pytest
from flax import linen as nn

from jaxadv import models, types

_SHARED = pathlib.Path(__file__).resolve().parents[1].parent / "shared"
_FOLDER = _SHARED / "golden"
_IMAGES = _SHARED / "data" / "mnist" / "t10k-images-idx3-ubyte.gz"
_LABELS = _SHARED / "data" / "mnist" / "t10k-labels-idx1-ubyte.gz"

needed = pytest.mark.skipif(
  not (_FOLDER.exists() and _IMAGES.exists()),
  reason="the recorded results lie in ../shared, which is absent",
)


class _Net(nn.Module):
  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    for features in (16, 32):
      x = nn.Conv(
        features,
        (5, 5),
        strides=2,
        conv_general_dilated=models.conv_general_dilated,
      )(x)
      x = nn.relu(x)
    x = nn.relu(nn.Dense(100)(x.reshape(x.shape[0], -1)))
    return nn.Dense(10)(x)


@functools.cache
def net(name: str) -> types.LogitsFn:
  """The network `nat` (trained as usual) or `adv` (adversarially)."""
  variables: dict = {}
  with np.load(_FOLDER / "nets.npz") as file:
    for path in file.files:
      owner, *branch, leaf = path.split("/")
      if owner == name:
        node = variables
        for part in branch:
          node = node.setdefault(part, {})
        node[leaf] = file[path]
  return models.bind(_Net().apply, jax.device_put(variables))


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
  with np.load(_FOLDER / "results.npz") as file:
    return {
      path.removeprefix(f"{prefix}/"): file[path]
      for path in file.files
      if path.rpartition("/")[0] == prefix
    }
