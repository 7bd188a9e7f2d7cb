"""Writing TFDS folders without TensorFlow."""

import numpy as np
import pytest
import tensorflow_datasets as tfds

from jaxadv.data import datasets, prepare, raw

_FINE = [f"class {i}" for i in range(100)]
_COARSE = [f"kind {i}" for i in range(20)]


def _content(name, num_train=30, num_test=12):
  """Random images, whose labels cycle, as `raw.read` would return them."""
  rng = np.random.default_rng(0)
  shape = (28, 28, 1) if "mnist" in name else (32, 32, 3)

  def split(num):
    labels = {"label": np.arange(num) % 10}
    if name == "cifar100":
      labels["coarse_label"] = np.arange(num) % 20
    return raw.Split(rng.integers(0, 256, (num, *shape), np.uint8), labels)

  names = {}
  if name == "cifar10":
    names = {"label": _FINE[:10]}
  if name == "cifar100":
    names = {"label": _FINE, "coarse_label": _COARSE}
  return raw.Raw({"train": split(num_train), "test": split(num_test)}, names)


@pytest.fixture(name="content")
def _fixture_content(request, monkeypatch):
  content = _content(request.param)
  monkeypatch.setattr(raw, "read", lambda name, source_dir: content)
  return content


@pytest.mark.parametrize(
  ("name", "content"), [(n, n) for n in raw.SOURCES], indirect=["content"]
)
def test_prepared_is_loaded_in_the_official_order(name, content, tmp_path):
  place = prepare.prepare(name, "unused", data_dir=tmp_path)
  assert place.parent == tmp_path / name
  data = datasets.load(name, data_dir=tmp_path)
  train, test = content.splits["train"], content.splits["test"]
  np.testing.assert_array_equal(data.test.images, test.images)
  np.testing.assert_array_equal(data.test.labels, test.labels["label"])
  # A tenth of 30 training examples is for validation.
  np.testing.assert_array_equal(data.train.images, train.images[:27])
  np.testing.assert_array_equal(data.validation.images, train.images[27:])
  np.testing.assert_array_equal(
    data.validation.labels, train.labels["label"][27:]
  )
  assert data.train.labels.dtype == np.int32
  assert data.name == name
  assert data.num_classes == (100 if name == "cifar100" else 10)
  if name in content.class_names:
    assert data.class_names == tuple(content.class_names["label"])


@pytest.mark.parametrize("content", ["cifar100"], indirect=True)
def test_other_readers_get_the_official_features(content, tmp_path):
  prepare.prepare("cifar100", "unused", data_dir=tmp_path)
  source = tfds.data_source(
    "cifar100", split="test", data_dir=tmp_path, download=False
  )
  rows = list(source)
  ids = [row["id"] for row in rows]
  assert ids != sorted(ids)
  for row in rows:
    i = int(row["id"].removeprefix(b"test_"))
    split = content.splits["test"]
    np.testing.assert_array_equal(row["image"], split.images[i])
    assert row["coarse_label"] == split.labels["coarse_label"][i]
  assert source.dataset_info.features["coarse_label"].names == _COARSE
  assert source.dataset_info.version == "3.0.2"


@pytest.mark.parametrize("content", ["mnist"], indirect=True)
def test_interrupted_preparation_leaves_nothing(content, tmp_path, monkeypatch):
  del content
  encode = prepare._png
  calls = iter(range(1_000))

  def interrupted(image):
    if next(calls) == 20:
      raise KeyboardInterrupt
    return encode(image)

  monkeypatch.setattr(prepare, "_png", interrupted)
  with pytest.raises(KeyboardInterrupt):
    prepare.prepare("mnist", "unused", data_dir=tmp_path)
  assert not [path for path in tmp_path.rglob("*") if path.is_file()]
  with pytest.raises(FileNotFoundError):
    datasets.load("mnist", data_dir=tmp_path)
  monkeypatch.undo()
  monkeypatch.setattr(raw, "read", lambda name, source_dir: _content(name))
  prepare.prepare("mnist", "unused", data_dir=tmp_path)
  assert datasets.load("mnist", data_dir=tmp_path).num_classes == 10


@pytest.mark.parametrize("content", ["mnist"], indirect=True)
def test_prepared_data_set_is_left_alone(content, tmp_path, monkeypatch):
  del content
  place = prepare.prepare("mnist", "unused", data_dir=tmp_path)
  before = {path: path.stat().st_mtime_ns for path in place.iterdir()}
  monkeypatch.setattr(prepare, "_png", lambda image: pytest.fail("written"))
  assert prepare.prepare("mnist", "unused", data_dir=tmp_path) == place
  assert before == {path: path.stat().st_mtime_ns for path in place.iterdir()}
