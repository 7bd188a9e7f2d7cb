"""Records and their files."""

import numpy as np
import pytest

from jaxadv import engine
from jaxadv.engine import record as record_lib


def _record():
  x = np.zeros((3, 2, 2, 1), np.float32)
  x_adv = x.copy()
  x_adv[0, 0, 0, 0], x_adv[0, 1, 1, 0] = 0.3, -0.4
  x_adv[1, 0, 1, 0] = 5e-7
  return engine.Record(
    x_adv=x_adv,
    success=np.array([True, False, True]),
    inside=np.array([True, True, True]),
    bounded=np.asarray(True),
    distance=record_lib.distances(x, x_adv),
    steps=np.array([1, 2, 3], np.int32),
    forwards=np.array([2, 4, 6]),
    backwards=np.array([1, 2, 3]),
    index=np.arange(3),
  )


def test_distances_by_hand():
  distance = _record().distance
  np.testing.assert_allclose(distance["linf"], [0.4, 5e-7, 0], rtol=1e-6)
  np.testing.assert_allclose(distance["l2"], [0.5, 5e-7, 0], rtol=1e-6)
  np.testing.assert_allclose(distance["l1"], [0.7, 5e-7, 0], rtol=1e-6)
  np.testing.assert_array_equal(distance["l0"], [2, 0, 0])


def test_save_and_load(tmp_path):
  record, path = _record(), tmp_path / "new" / "record.npz"
  record.save(path)
  loaded = engine.Record.load(path)
  for field in (
    "x_adv",
    "success",
    "inside",
    "bounded",
    "steps",
    "forwards",
    "backwards",
    "index",
  ):
    saved, found = getattr(record, field), getattr(loaded, field)
    np.testing.assert_array_equal(saved, found)
    assert saved.dtype == found.dtype
  assert loaded.distance.keys() == record.distance.keys()
  for norm, values in record.distance.items():
    np.testing.assert_array_equal(loaded.distance[norm], values)
  assert [file.name for file in path.parent.iterdir()] == ["record.npz"]


def test_a_failed_save_leaves_the_old_file_whole(tmp_path, monkeypatch):
  path = tmp_path / "record.npz"
  _record().save(path)
  before = path.read_bytes()

  def fail(file, **arrays):
    file.write(b"half a file")
    raise OSError("disk full")

  monkeypatch.setattr(record_lib.np, "savez", fail)
  with pytest.raises(OSError, match="disk full"):
    _record().save(path)
  assert path.read_bytes() == before
  assert list(tmp_path.iterdir()) == [path]
