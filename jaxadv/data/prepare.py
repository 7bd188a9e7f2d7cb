"""Writes folders of TensorFlow Datasets (TFDS) without TensorFlow."""

import inspect
import io
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from jaxadv.data import raw

# As the official builders write the feature `id` of the sets that have one.
_IDS = {
  "cifar10": "{}_{:05d}",
  "cifar100": "{}_{:05d}",
  "svhn_cropped": "{}_{:06d}",
}


def prepare(
  name: str,
  source_dir: str | os.PathLike,
  *,
  data_dir: str | os.PathLike | None = None,
) -> pathlib.Path:
  """Writes data set `name` from its official files and returns its folder.

  The folder has the name, version, features and order of the one that TFDS
  itself would write (in array_record format; `svhn_cropped` lacks `extra`), so
  `tfds.data_source` reads it too. It is written beside its place and then
  moved there: a run that is killed leaves no half data set. One that is already
  there is left as it is.

  Args:
    name: a key of `raw.SOURCES`.
    source_dir: see `raw.read`.
    data_dir: where TFDS keeps its data sets; by default `$TFDS_DATA_DIR`, or
      else `~/tensorflow_datasets`.

  Raises:
    FileNotFoundError: if an official file is missing.
    ValueError: if the name is unknown or a file is not the official one.
  """
  content = raw.read(name, source_dir)
  builder_cls = _builder_cls(name, content)
  place = pathlib.Path(builder_cls(data_dir=data_dir).data_path)
  if place.is_dir():
    return place
  place.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=place.parent, prefix=".tmp-") as tmp:
    builder = builder_cls(data_dir=tmp, file_format="array_record")
    builder.download_and_prepare()
    os.replace(builder.data_path, place)
  return place


def _builder_cls(data_set: str, content: raw.Raw) -> type:
  """The official builder, but for where it has the examples from."""
  official: Any = tfds.builder_cls(data_set)

  class Builder(official, skip_registration=True):  # type: ignore[call-arg]
    name = data_set
    VERSION = official.VERSION
    # TFDS would look for the checksums of downloads beside this code, with
    # importlib_resources, which it does not install.
    code_path = None
    # Some official builders read their description from their own folder.
    pkg_dir_path = pathlib.Path(inspect.getfile(official)).parent

    def _split_generators(self, dl_manager):
      del dl_manager
      for label, names in content.class_names.items():
        self.info.features[label].names = names
      return {
        split: _examples(data_set, split, rows)
        for split, rows in content.splits.items()
      }

  return Builder


def _examples(
  name: str, split: str, rows: raw.Split
) -> Iterator[tuple[int, dict[str, Any]]]:
  for i, image in enumerate(rows.images):
    example: dict[str, Any] = {"image": _png(image)}
    example |= {label: int(values[i]) for label, values in rows.labels.items()}
    if name in _IDS:
      example["id"] = _IDS[name].format(split, i)
    yield i, example


def _png(image: np.ndarray) -> bytes:
  """Encodes `[H, W, C]`: TFDS would need TensorFlow to encode an array."""
  buffer = io.BytesIO()
  pixels = image[..., 0] if image.shape[-1] == 1 else image
  Image.fromarray(pixels).save(buffer, format="PNG")
  return buffer.getvalue()
