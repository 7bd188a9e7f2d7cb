"""The official files of the image data sets, read with NumPy alone.

`read` checks every file against its published checksum before it opens it, so
that a damaged or altered copy never becomes a result (and no pickle is loaded
that is not the official one).
"""

import gzip
import hashlib
import io
import os
import pathlib
import pickle
import tarfile
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import scipy.io


class Split(NamedTuple):
  """One split as its authors ordered it.

  Attributes:
    images: uint8 `[N, H, W, C]`.
    labels: for each label of the data set, its name in TFDS and int64 `[N]`.
  """

  images: np.ndarray
  labels: dict[str, np.ndarray]


class Raw(NamedTuple):
  """What the official files hold.

  Attributes:
    splits: `train` and `test`.
    class_names: for each label whose classes the files name, those names.
  """

  splits: dict[str, Split]
  class_names: dict[str, list[str]]


class Source(NamedTuple):
  """Where a data set comes from.

  Attributes:
    checksums: for each official file, the folder it is packed in (if any) and
      its name; its sha256 (64 digits) or md5 (32 digits).
    parse: makes a `Raw` of the contents of those files.
  """

  checksums: dict[str, str]
  parse: Callable[[Mapping[str, bytes]], Raw]


def read(name: str, source_dir: str | os.PathLike) -> Raw:
  """Reads the official files of data set `name`.

  Args:
    name: a key of `SOURCES`.
    source_dir: the folder that holds the files, or holds them in the folder
      or the tar archive they were published in; or that archive itself.

  Raises:
    FileNotFoundError: if a file is missing.
    ValueError: if the name is unknown or a file is not the official one.
  """
  if name not in SOURCES:
    raise ValueError(
      f"name={name!r}: no official files known; choose from {sorted(SOURCES)}"
    )
  checksums = SOURCES[name].checksums
  contents = _contents(pathlib.Path(source_dir), checksums)
  missing = sorted(set(checksums) - set(contents))
  if missing:
    raise FileNotFoundError(
      f"{name}: source_dir={source_dir} lacks {', '.join(missing)}; "
      "download the official files there"
    )
  for file, checksum in checksums.items():
    algorithm = "md5" if len(checksum) == 32 else "sha256"
    actual = hashlib.new(algorithm, contents[file]).hexdigest()
    if actual != checksum:
      raise ValueError(
        f"{name}: {file} in source_dir={source_dir} is not the "
        f"official file: its {algorithm} is {actual}, not {checksum}; "
        "download it again"
      )
  return SOURCES[name].parse(contents)


def _contents(source: pathlib.Path, files: Iterable[str]) -> dict[str, bytes]:
  """The bytes of those of `files` that `source` holds."""
  if source.is_file():
    return _archived(source, files)
  if not source.is_dir():
    raise FileNotFoundError(f"source_dir={source} does not exist")
  found = {}
  for file in files:
    for path in (source / file, source / pathlib.Path(file).name):
      if path.is_file():
        found[file] = path.read_bytes()
        break
  for archive in sorted(source.glob("*.tar.*")):
    missing = set(files) - set(found)
    if not missing:
      break
    found |= _archived(archive, missing)
  return found


def _archived(path: pathlib.Path, files: Iterable[str]) -> dict[str, bytes]:
  found = {}
  try:
    with tarfile.open(path) as archive:
      for member in archive:
        name = member.name.removeprefix("./")
        if name in files and (file := archive.extractfile(member)):
          found[name] = file.read()
  except (tarfile.TarError, EOFError) as error:
    raise ValueError(
      f"{path} is not a whole tar archive; download it again"
    ) from error
  return found


def _parse_idx(contents: Mapping[str, bytes]) -> Raw:
  def array(file: str) -> np.ndarray:
    data = gzip.decompress(contents[file])
    # Two zero bytes, the type (8 = uint8), the rank, then the shape.
    shape = np.frombuffer(data, ">i4", count=data[3], offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)

  return Raw(
    splits={
      split: Split(
        images=array(f"{prefix}-images-idx3-ubyte.gz")[..., None],
        labels={
          "label": array(f"{prefix}-labels-idx1-ubyte.gz").astype(np.int64)
        },
      )
      for split, prefix in (("train", "train"), ("test", "t10k"))
    },
    class_names={},
  )


def _unpickle(data: bytes) -> dict[bytes, Any]:
  with warnings.catch_warnings():
    # The pickles hold dtypes as NumPy wrote them in 2009.
    warnings.simplefilter("ignore")
    return pickle.loads(data, encoding="bytes")


def _parse_cifar(
  contents: Mapping[str, bytes],
  *,
  folder: str,
  batches: Mapping[str, list[str]],
  meta: str,
  labels: Mapping[str, tuple[bytes, bytes]],
) -> Raw:
  """Reads Python batches.

  Args:
    contents: the files.
    folder: the folder they are published in.
    batches: for each split, its files.
    meta: the file of class names.
    labels: for each label, its key in the batches and that of its class names.
  """
  splits = {}
  for split, files in batches.items():
    parts = [_unpickle(contents[f"{folder}/{file}"]) for file in files]
    planes = np.concatenate([part[b"data"] for part in parts])
    splits[split] = Split(
      images=planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1),
      labels={
        label: np.concatenate([part[key] for part in parts])
        for label, (key, _) in labels.items()
      },
    )
  names = _unpickle(contents[f"{folder}/{meta}"])
  return Raw(
    splits,
    {
      label: [name.decode() for name in names[key]]
      for label, (_, key) in labels.items()
    },
  )


def _parse_cifar10(contents: Mapping[str, bytes]) -> Raw:
  return _parse_cifar(
    contents,
    folder="cifar-10-batches-py",
    batches={
      "train": [f"data_batch_{i}" for i in range(1, 6)],
      "test": ["test_batch"],
    },
    meta="batches.meta",
    labels={"label": (b"labels", b"label_names")},
  )


def _parse_cifar100(contents: Mapping[str, bytes]) -> Raw:
  return _parse_cifar(
    contents,
    folder="cifar-100-python",
    batches={"train": ["train"], "test": ["test"]},
    meta="meta",
    labels={
      "label": (b"fine_labels", b"fine_label_names"),
      "coarse_label": (b"coarse_labels", b"coarse_label_names"),
    },
  )


def _parse_svhn(contents: Mapping[str, bytes]) -> Raw:
  splits = {}
  for split in ("train", "test"):
    data = scipy.io.loadmat(io.BytesIO(contents[f"{split}_32x32.mat"]))
    splits[split] = Split(
      images=data["X"].transpose(3, 0, 1, 2),
      # The files call the digit 0 class 10.
      labels={"label": data["y"][:, 0].astype(np.int64) % 10},
    )
  return Raw(splits, class_names={})


# sha256: as registered in TensorFlow Datasets 4.9.10. md5: as torchvision
# checks the Python batches, which TensorFlow Datasets does not use.
SOURCES: dict[str, Source] = {
  "mnist": Source(
    {
      "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56b"
      "e210a4024d2ca8f203523609",
      "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567e"
      "c52cac8be1a0730e8010255c",
      "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee79"
      "2b84584aec276f5a2dbc4e6",
      "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3f"
      "fa0defaefb259924204aec6",
    },
    _parse_idx,
  ),
  "fashion_mnist": Source(
    {
      "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12"
      "800ba2636569512369268a84",
      "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1b"
      "faf8ba1a3aa29af54cc90845",
      "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4"
      "595297633bb08f03db6a073",
      "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608"
      "764d35dfb1850b086bf8dd5",
    },
    _parse_idx,
  ),
  "cifar10": Source(
    {
      "cifar-10-batches-py/data_batch_1": "c99cafc152244af753f735de768cd75f",
      "cifar-10-batches-py/data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
      "cifar-10-batches-py/data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
      "cifar-10-batches-py/data_batch_4": "634d18415352ddfa80567beed471001a",
      "cifar-10-batches-py/data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
      "cifar-10-batches-py/test_batch": "40351d587109b95175f43aff81a1287e",
      "cifar-10-batches-py/batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
    },
    _parse_cifar10,
  ),
  "cifar100": Source(
    {
      "cifar-100-python/train": "16019d7e3df5f24257cddd939b257f8d",
      "cifar-100-python/test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
      "cifar-100-python/meta": "7973b15100ade9c7d40fb424638fde48",
    },
    _parse_cifar100,
  ),
  "svhn_cropped": Source(
    {
      "train_32x32.mat": "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de"
      "1df7508d083b8",
      "test_32x32.mat": "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f0"
      "9182025b6a75b",
    },
    _parse_svhn,
  ),
}
