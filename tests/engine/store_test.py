"""A record comes back for what it is of, and for nothing else."""

import jax
import numpy as np
import pytest

from jaxadv import engine
from jaxadv.engine import fingerprints
from jaxadv.engine import record as record_lib
from jaxadv.engine.store import Store
from tests import victims

_X, _Y = victims.blobs(12)
_KEY = jax.random.key(0)


def _open(folder, logits_fn=None, key=_KEY, x=_X, y=_Y) -> Store:
  logits_fn = victims.ordinary(25, 4) if logits_fn is None else logits_fn
  return Store(folder, logits_fn, key, x, y)


def _record(rows) -> engine.Record:
  x_adv = np.asarray(_X[rows] + np.float32(0.01))
  return engine.Record(
    x_adv=x_adv,
    success=np.asarray(rows) % 2 == 0,
    inside=np.ones(len(rows), bool),
    bounded=np.asarray(True),
    distance=record_lib.distances(_X[rows], x_adv),
    steps=np.asarray(rows, np.int32),
    forwards=np.asarray(rows),
    backwards=np.asarray(rows),
    index=np.asarray(rows, np.int32),
  )


class _Maker:
  """Counts how often a record is made."""

  def __init__(self):
    self.calls = 0

  def __call__(self, store, rows, attack="a", name="pgd"):
    def make(checkpoint):
      del checkpoint
      self.calls += 1
      return _record(rows)

    return store.record(name, attack, np.asarray(rows), make)


def _assert_same(a: engine.Record, b: engine.Record):
  jax.tree.map(np.testing.assert_array_equal, vars(a), vars(b))


def test_kept_once_made(tmp_path, capsys):
  made = _Maker()
  record, seconds = made(_open(tmp_path / "new"), range(5))
  again, same_seconds = made(_open(tmp_path / "new"), range(5))
  _assert_same(record, again)
  assert made.calls == 1 and seconds == same_seconds > 0
  names = {path.name for path in (tmp_path / "new").iterdir()}
  assert names == {"of.json", "pgd.npz"}
  _assert_same(engine.Record.load(tmp_path / "new" / "pgd.npz"), record)
  assert capsys.readouterr().out == ""


def test_rows_are_aligned(tmp_path):
  made = _Maker()
  made(_open(tmp_path), [1, 3, 5, 7, 9])
  part, _ = made(_open(tmp_path), [9, 3])
  _assert_same(part, _record([9, 3]))
  assert made.calls == 1


def test_rows_that_are_missing_are_not_made_up(tmp_path, capsys):
  made = _Maker()
  made(_open(tmp_path), [1, 3, 5])
  record, _ = made(_open(tmp_path), [3, 4, 6])
  _assert_same(record, _record([3, 4, 6]))
  assert made.calls == 2
  line = capsys.readouterr().out
  assert "pgd.npz lacks 2 of 3 examples: attacking anew" in line


def test_a_changed_attack_is_made_anew_and_no_other(tmp_path, capsys):
  made = _Maker()
  for name in ("pgd", "fgsm"):
    made(_open(tmp_path), range(4), name=name)
  store = _open(tmp_path)
  made(store, range(4), attack="b")
  line = capsys.readouterr().out
  assert "pgd.npz is of another attack or other settings" in line
  assert line.count("\n") == 1
  made(store, range(4), name="fgsm")
  made(store, range(4), attack="b")
  assert made.calls == 3 and capsys.readouterr().out == ""


def test_the_old_record_stays_until_the_new_one_is_there(tmp_path):
  made = _Maker()
  made(_open(tmp_path), range(4))

  def stopped(checkpoint):
    checkpoint.write_bytes(b"partial")
    raise engine.Interrupted

  with pytest.raises(engine.Interrupted):
    _open(tmp_path).record("pgd", "b", np.arange(4), stopped)
  assert len(list(tmp_path.glob("pgd.*.partial.*"))) == 2
  made(_open(tmp_path), range(4))
  assert made.calls == 1


def test_a_checkpoint_of_another_attack_is_dropped(tmp_path, capsys):
  seen = []

  def stopped(checkpoint):
    seen.append(checkpoint)
    checkpoint.write_bytes(b"partial")
    raise engine.Interrupted

  for attack, rows in (("a", 4), ("a", 4), ("b", 4), ("b", 5)):
    with pytest.raises(engine.Interrupted):
      _open(tmp_path).record("pgd", attack, np.arange(rows), stopped)
  assert seen[0] == seen[1] and len(set(seen)) == 3
  assert [path.exists() for path in seen] == [False] * 3 + [True]
  assert capsys.readouterr().out.count("attacking anew") == 2


@pytest.mark.parametrize(
  ("other", "words"),
  [
    ({"logits_fn": victims.ordinary(25, 4, seed=1)}, "another model:"),
    ({"x": _X**2}, "another data set:"),
    ({"y": 3 - _Y}, "another data set:"),
    ({"key": jax.random.key(1)}, "another key or seed:"),
    (
      {"key": jax.random.key(1), "logits_fn": victims.stochastic(25, 4)},
      "another model, key or seed:",
    ),
  ],
  ids=["model", "images", "labels", "key", "both"],
)
def test_refuses_the_folder_of_something_else(tmp_path, other, words):
  _open(tmp_path)
  with pytest.raises(ValueError, match=f"{tmp_path} is of {words}"):
    _open(tmp_path, **other)


def test_refuses_a_record_that_was_put_there(tmp_path):
  made = _Maker()
  made(_open(tmp_path / "one"), range(4))
  other = _open(tmp_path / "two", key=jax.random.key(1))
  there = tmp_path / "two" / "pgd.npz"
  there.write_bytes((tmp_path / "one" / "pgd.npz").read_bytes())
  with pytest.raises(ValueError, match=r"pgd\.npz is of another key"):
    made(other, range(4))


def test_refuses_records_of_another_jax(tmp_path, monkeypatch):
  _open(tmp_path)
  monkeypatch.setattr(fingerprints.jax, "__version__", "0.9.9")
  with pytest.raises(ValueError, match=r"version .*; this is .*JAX 0\.9\.9"):
    _open(tmp_path)


def _cut(path):
  path.write_bytes(path.read_bytes()[:-50])


def _flip(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 4] ^= 0xFF
  path.write_bytes(content)


def _empty(path):
  path.write_bytes(b"")


def _foreign(path):
  path.write_bytes(b"[1, 2]")


def _bare(path):
  """As another program writes it: without a fingerprint."""
  np.savez(path, x_adv=_X)


@pytest.mark.parametrize(
  ("name", "spoil"),
  [("pgd.npz", spoil) for spoil in (_cut, _flip, _empty, _foreign, _bare)]
  + [("of.json", spoil) for spoil in (_cut, _empty, _foreign)],
)
def test_damaged_files_are_named(tmp_path, name, spoil):
  made = _Maker()
  made(_open(tmp_path), range(4))
  spoil(tmp_path / name)
  with pytest.raises(engine.Damaged, match=f"{name} is damaged") as caught:
    made(_open(tmp_path), range(4))
  assert "\n" not in str(caught.value)
