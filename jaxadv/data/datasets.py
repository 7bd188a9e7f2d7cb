"""Data sets of labelled images, whole in memory, in the order of their authors.

`digits` needs no download. The others are read from a folder of TensorFlow
Datasets (TFDS), without TensorFlow.
"""

import hashlib
import io
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import rich.console
import rich.progress
import tensorflow_datasets as tfds
from PIL import Image
from sklearn import datasets as sklearn_datasets

_TFDS_NAMES = ("mnist", "fashion_mnist", "cifar10", "cifar100", "svhn_cropped")
DATASETS = ("digits", *_TFDS_NAMES)

_NUM_VALIDATION = 5_000
_ROWS_PER_READ = 1_000


class Examples(NamedTuple):
  """One split of a data set.

  Attributes:
    images: uint8 `[N, H, W, C]`.
    labels: int32 `[N]`.
    white: the pixel value that means 1.0.
  """

  images: np.ndarray
  labels: np.ndarray
  white: int = 255


class Dataset(NamedTuple):
  """A data set of labelled images.

  Attributes:
    name: as `load` knows it.
    train: what models are fitted to.
    validation: what choices are made with.
    test: what results are reported on.
    class_names: the names of the labels 0, 1, ...
  """

  name: str
  train: Examples
  validation: Examples
  test: Examples
  class_names: tuple[str, ...]

  @property
  def num_classes(self) -> int:
    """The number of labels."""
    return len(self.class_names)


def load(name: str, *, data_dir: str | os.PathLike | None = None) -> Dataset:
  """Loads a data set into memory.

  Every split is in the order of the official files: the shuffling of TFDS is
  undone, so that "the first 500 test images" are those of other libraries.

  `digits`: the 1,797 digits of 8 x 8 pixels, 0 to 16, of scikit-learn. They are
  ranked by class, then by position; of every ten in a row the first seven are
  for training, the eighth for validation, the rest for testing: 1,260 / 179 /
  358, stratified, in the order of scikit-learn.

  The others have official training and test splits; the last 5,000 training
  examples (or a tenth of the split, if that is less) are for validation.
  `cifar100` has its 100 fine labels; `svhn_cropped` is without `extra`.

  Args:
    name: one of `DATASETS`.
    data_dir: where TFDS keeps its data sets; by default `$TFDS_DATA_DIR`, or
      else `~/tensorflow_datasets`.

  Raises:
    ValueError: if there is no such data set.
    FileNotFoundError: if it has not been prepared in `data_dir`.
  """
  if name == "digits":
    return _digits()
  if name not in _TFDS_NAMES:
    raise ValueError(f"name={name!r}: choose from {', '.join(DATASETS)}")
  sources = _open(name, data_dir)
  train, test = _read(sources["train"], name), _read(sources["test"], name)
  num_train = len(train.labels) - min(_NUM_VALIDATION, len(train.labels) // 10)
  class_names = sources["train"].dataset_info.features["label"].names
  return Dataset(
    name=name,
    train=_select(train, slice(num_train)),
    validation=_select(train, slice(num_train, None)),
    test=test,
    class_names=tuple(class_names),
  )


def first(examples: Examples, n: int) -> Examples:
  """Returns the first `n` examples.

  Raises:
    ValueError: if there are fewer, or `n` is not positive.
  """
  if not 0 < n <= len(examples.labels):
    raise ValueError(f"n={n}: must be from 1 to {len(examples.labels)}")
  return _select(examples, slice(n))


def unit(examples: Examples) -> tuple[np.ndarray, np.ndarray]:
  """Returns float32 images in [0, 1] and int32 labels."""
  images = examples.images.astype(np.float32) / np.float32(examples.white)
  return images, examples.labels


def _select(examples: Examples, rows: slice | np.ndarray) -> Examples:
  return examples._replace(
    images=examples.images[rows], labels=examples.labels[rows]
  )


def _digits() -> Dataset:
  bunch = sklearn_datasets.load_digits()
  examples = Examples(
    images=bunch.images.astype(np.uint8)[..., None],
    labels=bunch.target.astype(np.int32),
    white=16,
  )
  part = np.empty(len(examples.labels), int)
  by_class = np.argsort(examples.labels, kind="stable")
  part[by_class] = np.arange(len(part)) % 10
  return Dataset(
    name="digits",
    train=_select(examples, part < 7),
    validation=_select(examples, part == 7),
    test=_select(examples, part > 7),
    class_names=tuple(str(name) for name in bunch.target_names),
  )


def _open(name: str, data_dir: str | os.PathLike | None) -> dict[str, Any]:
  """The splits of a prepared data set, images not yet decoded."""
  try:
    return tfds.data_source(
      name,
      split={"train": "train", "test": "test"},
      data_dir=data_dir,
      download=False,
      # Faster than the decoding by TFDS, which also warns about OpenCV.
      decoders={"image": tfds.decode.SkipDecoding()},
    )
  # A KeyError where even the folder of all data sets is missing.
  except (AssertionError, KeyError, NotImplementedError) as error:
    where = data_dir or "$TFDS_DATA_DIR or ~/tensorflow_datasets"
    raise FileNotFoundError(
      f"{name} is not in data_dir={where} as array_record files. Either "
      "download its official files and run `python -m "
      f"experiments.prepare_data --dataset={name} --source_dir=...`, which "
      "needs no TensorFlow; or `pip install -e '.[tensorflow]'` and run "
      f"`tfds build {name} --file_format=array_record`."
    ) from error


def _read(source: Any, name: str) -> Examples:
  info = source.dataset_info
  num_rows = len(source)
  images = np.empty((num_rows, *info.features["image"].shape), np.uint8)
  labels = np.empty(num_rows, np.int32)
  order = _official_order(source.split, num_rows)
  console = rich.console.Console(stderr=True)
  for start in rich.progress.track(
    range(0, num_rows, _ROWS_PER_READ),
    description=f"reading {name} {source.split}",
    console=console,
    transient=True,
    disable=not console.is_terminal,
  ):
    stored = range(start, min(start + _ROWS_PER_READ, num_rows))
    for i, row in zip(order[start:], source.__getitems__(stored), strict=False):
      pixels = np.asarray(Image.open(io.BytesIO(row["image"])))
      images[i] = pixels.reshape(images.shape[1:])
      labels[i] = row["label"]
  return Examples(images, labels)


def _official_order(split: str, num_rows: int) -> Sequence[int]:
  """The official position of each stored row.

  TFDS sorts the examples of a split by the md5 of its name followed by their
  key, which for these data sets is the position in the official files.
  """

  def stored_rank(i: int) -> bytes:
    return hashlib.md5(f"{split}{i}".encode(), usedforsecurity=False).digest()

  return sorted(range(num_rows), key=stored_rank)
