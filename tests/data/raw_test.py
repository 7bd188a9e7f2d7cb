"""Reading official files: layouts, packings, checksums."""

import gzip
import hashlib
import pathlib
import pickle
import tarfile

import numpy as np
import pytest
import scipy.io

from jaxadv.data import raw

_SHARED = pathlib.Path(__file__).resolve().parents[2].parent / "shared" / "data"


def _accept(monkeypatch, name, files):
  """Writes nothing: declares `files` to be the official ones of `name`."""
  source = raw.SOURCES[name]
  assert set(files) == set(source.checksums)
  checksums = {
    file: (hashlib.md5 if "cifar" in name else hashlib.sha256)(data).hexdigest()
    for file, data in files.items()
  }
  monkeypatch.setitem(raw.SOURCES, name, source._replace(checksums=checksums))


def _write(folder, files):
  for file, data in files.items():
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _idx(array):
  header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
  return gzip.compress(header + array.tobytes())


def _mnist(rng):
  images = rng.integers(0, 256, (5, 4, 3), dtype=np.uint8)
  labels = rng.integers(0, 10, 5, dtype=np.uint8)
  files = {
    "train-images-idx3-ubyte.gz": _idx(images),
    "train-labels-idx1-ubyte.gz": _idx(labels),
    "t10k-images-idx3-ubyte.gz": _idx(images[:2]),
    "t10k-labels-idx1-ubyte.gz": _idx(labels[:2]),
  }
  return files, images, labels


def _cifar10(rng):
  images = rng.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
  planes = images.transpose(0, 3, 1, 2).reshape(6, 3072)
  labels = [3, 1, 4, 1, 5, 9]
  stems = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
  files = {
    f"cifar-10-batches-py/{stem}": pickle.dumps(
      {b"data": planes[i : i + 1], b"labels": labels[i : i + 1]}
    )
    for i, stem in enumerate(stems)
  }
  names = {b"label_names": [b"airplane", b"automobile"]}
  files["cifar-10-batches-py/batches.meta"] = pickle.dumps(names)
  return files, images, labels


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_idx_files(name, tmp_path, monkeypatch):
  files, images, labels = _mnist(np.random.default_rng(0))
  _accept(monkeypatch, name, files)
  _write(tmp_path, files)
  content = raw.read(name, tmp_path)
  train, test = content.splits["train"], content.splits["test"]
  np.testing.assert_array_equal(train.images, images[..., None])
  np.testing.assert_array_equal(train.labels["label"], labels)
  np.testing.assert_array_equal(test.images, images[:2, ..., None])
  np.testing.assert_array_equal(test.labels["label"], labels[:2])


@pytest.mark.parametrize("packing", ["folder", "inside", "tar", "tar inside"])
def test_cifar10_in_every_packing(packing, tmp_path, monkeypatch):
  files, images, labels = _cifar10(np.random.default_rng(0))
  _accept(monkeypatch, "cifar10", files)
  _write(tmp_path / "unpacked", files)
  archive = tmp_path / "packed" / "cifar-10-python.tar.gz"
  archive.parent.mkdir()
  with tarfile.open(archive, "w:gz") as tar:
    tar.add(tmp_path / "unpacked", arcname=".")
  source_dir = {
    "folder": tmp_path / "unpacked",
    "inside": tmp_path / "unpacked" / "cifar-10-batches-py",
    "tar": archive,
    "tar inside": archive.parent,
  }[packing]
  content = raw.read("cifar10", source_dir)
  train, test = content.splits["train"], content.splits["test"]
  np.testing.assert_array_equal(train.images, images[:5])
  np.testing.assert_array_equal(train.labels["label"], labels[:5])
  np.testing.assert_array_equal(test.images, images[5:])
  np.testing.assert_array_equal(test.labels["label"], labels[5:])
  assert content.class_names == {"label": ["airplane", "automobile"]}


def test_cifar100_has_fine_and_coarse_labels(tmp_path, monkeypatch):
  part = pickle.dumps(
    {
      b"data": np.zeros((2, 3072), np.uint8),
      b"fine_labels": [99, 7],
      b"coarse_labels": [19, 2],
    }
  )
  meta = pickle.dumps(
    {b"fine_label_names": [b"apple"], b"coarse_label_names": [b"fruit"]}
  )
  files = {
    "cifar-100-python/train": part,
    "cifar-100-python/test": part,
    "cifar-100-python/meta": meta,
  }
  _accept(monkeypatch, "cifar100", files)
  _write(tmp_path, files)
  content = raw.read("cifar100", tmp_path)
  labels = content.splits["test"].labels
  assert labels["label"].tolist() == [99, 7]
  assert labels["coarse_label"].tolist() == [19, 2]
  assert content.class_names == {"label": ["apple"], "coarse_label": ["fruit"]}


def test_svhn_axes_and_digit_zero(tmp_path, monkeypatch):
  images = np.random.default_rng(0).integers(
    0, 256, (3, 32, 32, 3), dtype=np.uint8
  )
  mat = {"X": images.transpose(1, 2, 3, 0), "y": np.array([[10], [1], [9]])}
  files = {}
  for file in ("train_32x32.mat", "test_32x32.mat"):
    scipy.io.savemat(tmp_path / file, mat)
    files[file] = (tmp_path / file).read_bytes()
  _accept(monkeypatch, "svhn_cropped", files)
  train = raw.read("svhn_cropped", tmp_path).splits["train"]
  np.testing.assert_array_equal(train.images, images)
  assert train.labels["label"].tolist() == [0, 1, 9]


def test_altered_file_is_named(tmp_path, monkeypatch):
  files, _, _ = _mnist(np.random.default_rng(0))
  _accept(monkeypatch, "mnist", files)
  altered = "t10k-images-idx3-ubyte.gz"
  _write(tmp_path, files | {altered: files[altered] + b"x"})
  with pytest.raises(ValueError, match=f"{altered}.*sha256 is"):
    raw.read("mnist", tmp_path)


def test_no_pickle_is_loaded_unless_official(tmp_path, monkeypatch):
  files, _, _ = _cifar10(np.random.default_rng(0))
  _write(tmp_path, files)
  monkeypatch.setattr(pickle, "loads", lambda *_, **__: pytest.fail("loaded"))
  with pytest.raises(ValueError, match=r"data_batch_1.*md5 is"):
    raw.read("cifar10", tmp_path)


def test_missing_files_are_named(tmp_path):
  with pytest.raises(FileNotFoundError, match="lacks t10k-images-idx3-ubyte"):
    raw.read("mnist", tmp_path)
  with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
    raw.read("mnist", tmp_path / "nowhere")


def test_damaged_archive_is_named(tmp_path):
  path = tmp_path / "cifar-10-python.tar.gz"
  with tarfile.open(path, "w:gz") as tar:
    tar.add(pathlib.Path(__file__), arcname="cifar-10-batches-py/test_batch")
  path.write_bytes(path.read_bytes()[:-200])
  with pytest.raises(ValueError, match="not a whole tar archive"):
    raw.read("cifar10", tmp_path)


def test_unknown_name(tmp_path):
  with pytest.raises(ValueError, match=r"name='imagenet'.*cifar10"):
    raw.read("imagenet", tmp_path)


@pytest.mark.skipif(not _SHARED.is_dir(), reason="no files to read")
def test_the_real_mnist():
  content = raw.read("mnist", _SHARED / "mnist")
  train, test = content.splits["train"], content.splits["test"]
  assert train.images.shape == (60_000, 28, 28, 1)
  assert test.images.shape == (10_000, 28, 28, 1)
  assert test.labels["label"][:5].tolist() == [7, 2, 1, 0, 4]
  # The published mean pixel of the training images.
  assert round(float(train.images.mean()) / 255, 4) == 0.1307
