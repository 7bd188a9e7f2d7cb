"""Labelled images: data sets in memory, batches, augmentation."""

from jaxadv.data.batches import Batch, batch, eval_batches, train_batches
from jaxadv.data.datasets import DATASETS, Dataset, Examples, first, load, unit

__all__ = [
  "DATASETS",
  "Batch",
  "Dataset",
  "Examples",
  "batch",
  "eval_batches",
  "first",
  "load",
  "train_batches",
  "unit",
]
