"""Data sets in memory: splits, order, errors."""

import pathlib

import numpy as np
import pytest
from sklearn import datasets as sklearn_datasets
from tensorflow_datasets.core import constants

from jaxadv import data
from jaxadv.data import prepare, raw

_SHARED = pathlib.Path(__file__).resolve().parents[2].parent / "shared" / "data"


def _example(num=5):
  images = np.arange(num * 6, dtype=np.uint8).reshape(num, 2, 3, 1)
  return data.Examples(images, np.arange(num, dtype=np.int32), white=16)


def test_digits_are_all_there_once():
  digits = data.load("digits")
  splits = (digits.train, digits.validation, digits.test)
  assert [len(split.labels) for split in splits] == [1_260, 179, 358]
  for split in splits:
    assert split.images.dtype == np.uint8
    assert split.images.shape[1:] == (8, 8, 1)
    assert split.labels.dtype == np.int32
    assert split.white == 16
    assert split.images.max() == 16
  found = np.concatenate([split.images.reshape(-1, 64) for split in splits])
  official = sklearn_datasets.load_digits().data.astype(np.uint8)
  np.testing.assert_array_equal(
    found[np.lexsort(found.T)], official[np.lexsort(official.T)]
  )
  assert digits.num_classes == 10
  assert digits.class_names == tuple("0123456789")


def test_digits_are_stratified_and_labelled():
  digits = data.load("digits")
  bunch = sklearn_datasets.load_digits()
  all_counts = np.bincount(bunch.target)
  for split, share in (
    (digits.train, 0.7),
    (digits.validation, 0.1),
    (digits.test, 0.2),
  ):
    counts = np.bincount(split.labels)
    assert np.abs(counts - share * all_counts).max() < 2.5
  label_of = {
    row.astype(np.uint8).tobytes(): label
    for row, label in zip(bunch.data, bunch.target, strict=True)
  }
  for image, label in zip(digits.test.images, digits.test.labels, strict=True):
    assert label_of[image.tobytes()] == label


def test_digits_splits_are_fixed():
  digits = data.load("digits")
  assert digits.train.labels[:10].tolist() == [0, 2, 4, 5, 6, 7, 8, 0, 2, 4]
  assert digits.validation.labels[:6].tolist() == [3, 9, 8, 7, 5, 0]
  assert digits.test.labels[:6].tolist() == [1, 1, 3, 9, 3, 9]
  assert int(digits.validation.images.sum()) == 55_485
  assert int(digits.test.images.sum()) == 112_370


def test_first():
  examples = _example()
  some = data.first(examples, 2)
  np.testing.assert_array_equal(some.images, examples.images[:2])
  assert some.labels.tolist() == [0, 1]
  assert some.white == 16
  for n in (0, 6):
    with pytest.raises(ValueError, match=f"n={n}: must be from 1 to 5"):
      data.first(examples, n)


def test_unit():
  images, labels = data.unit(_example())
  assert images.dtype == np.float32
  assert labels.dtype == np.int32
  np.testing.assert_array_equal(images.ravel(), np.arange(30) / 16)


def test_unknown_name_lists_the_names():
  with pytest.raises(ValueError, match=r"name='minst': .*digits.*cifar100"):
    data.load("minst")


def test_every_downloaded_set_can_be_prepared():
  assert set(data.DATASETS) == {"digits", *raw.SOURCES}


@pytest.mark.parametrize("name", sorted(raw.SOURCES))
def test_missing_data_set_names_both_remedies(name, tmp_path):
  with pytest.raises(FileNotFoundError) as caught:
    data.load(name, data_dir=tmp_path)
  message = str(caught.value)
  assert str(tmp_path) in message
  assert f"experiments.prepare_data --dataset={name} --source_dir=" in message
  assert "pip install -e '.[tensorflow]'" in message


def test_a_folder_of_data_sets_that_is_not_there(tmp_path, monkeypatch):
  monkeypatch.setattr(constants, "DATA_DIR", str(tmp_path / "nowhere"))
  with pytest.raises(FileNotFoundError, match="is not in data_dir="):
    data.load("mnist")


@pytest.mark.slow
@pytest.mark.skipif(not _SHARED.is_dir(), reason="no files to read")
def test_the_real_mnist_has_its_own_order(tmp_path):
  prepare.prepare("mnist", _SHARED / "mnist", data_dir=tmp_path)
  mnist = data.load("mnist", data_dir=tmp_path)
  splits = raw.read("mnist", _SHARED / "mnist").splits
  np.testing.assert_array_equal(mnist.test.images, splits["test"].images)
  np.testing.assert_array_equal(
    mnist.train.images, splits["train"].images[:-5_000]
  )
  np.testing.assert_array_equal(
    mnist.validation.labels, splits["train"].labels["label"][-5_000:]
  )
