"""Stopped, killed, gone on: the result is as if nothing had happened."""

import jax
import numpy as np
import optax
import pytest

from jaxadv import attacks, balls, engine
from jaxadv.engine import job as job_lib
from tests import victims

_KEY = jax.random.key(0)
_RNG = np.random.default_rng(0)
_X = _RNG.uniform(0.3, 0.7, size=(80, 5, 5, 1)).astype(np.float32)
_SLOTS = 8


def _victim():
  # Its answers depend on keys, which therefore must survive, too.
  return victims.stochastic(25, 4)


_Y = victims.logits(victims.ordinary(25, 4), _X).argmax(1).astype(np.int32)


def _attack(eps=0.02):
  pgd = attacks.pgd(balls.Linf(eps), num_steps=5, step_size=eps / 4)
  return attacks.restarts(pgd, 3)


def _craft(attack=None, key=_KEY, x=_X, y=_Y, **options):
  return engine.craft(
    _attack() if attack is None else attack,
    _victim(),
    key,
    x,
    y,
    slots=_SLOTS,
    progress=False,
    **options,
  )


def _assert_equal(a, b):
  for left, right in zip(
    jax.tree.leaves(vars(a)), jax.tree.leaves(vars(b)), strict=True
  ):
    np.testing.assert_array_equal(left, right)


def test_stopped_after_every_segment(tmp_path):
  whole = _craft()
  assert 0 < whole.success.mean() < 1 and whole.steps.max() == 18
  path, stops, record = tmp_path / "job" / "part.npz", 0, None
  while record is None and stops < 30:
    try:
      record = _craft(checkpoint=path, stop=lambda: True)
    except engine.Interrupted as interrupted:
      assert "part.npz" in str(interrupted) and path.exists()
      stops += 1
  assert stops > 3
  _assert_equal(record, whole)
  assert not list(path.parent.iterdir())


def test_leftovers_of_killed_writers_are_ignored(tmp_path):
  path = tmp_path / "part.npz"
  with pytest.raises(engine.Interrupted):
    _craft(checkpoint=path, stop=lambda: True)
  half = path.read_bytes()[:100]
  (tmp_path / "tmp1234.tmp").write_bytes(half)
  (tmp_path / "part.npz.tmp").write_bytes(b"garbage")
  _assert_equal(_craft(checkpoint=path), _craft())
  assert not path.exists()


@pytest.mark.parametrize(
  "other",
  [{"key": jax.random.key(1)}, {"attack": _attack(0.03)}, {"x": _X**2}],
  ids=["key", "attack", "images"],
)
def test_refuses_the_checkpoint_of_another_job(tmp_path, other):
  path = tmp_path / "part.npz"
  with pytest.raises(engine.Interrupted):
    _craft(checkpoint=path, stop=lambda: True)
  with pytest.raises(ValueError, match=r"part\.npz.* belongs to another"):
    _craft(checkpoint=path, **other)
  assert path.exists()


def _rmsprop(rate):
  return attacks.projected_gradient(
    balls.Linf(0.02), optax.rmsprop(rate), num_steps=30
  )


def _closure(scale):
  w = scale * np.random.default_rng(0).normal(size=(25, 4)).astype(np.float32)
  return jax.tree_util.Partial(lambda keys, x: x.reshape(len(x), -1) @ w)


def test_functions_of_one_factory_are_told_apart(tmp_path):
  path = tmp_path / "part.npz"

  def craft(rate, scale):
    return engine.craft(
      _rmsprop(rate),
      _closure(scale),
      _KEY,
      _X,
      _Y,
      slots=_SLOTS,
      progress=False,
      checkpoint=path,
      stop=lambda: True,
    )

  with pytest.raises(engine.Interrupted):
    craft(0.01, 1.0)
  with pytest.raises(ValueError, match="belongs to another attack:"):
    craft(0.5, 1.0)
  with pytest.raises(ValueError, match="belongs to another model:"):
    craft(0.01, -1.0)
  with pytest.raises(engine.Interrupted):
    craft(0.01, 1.0)


def test_stops_without_a_checkpoint_too():
  with pytest.raises(engine.Interrupted):
    _craft(stop=lambda: True)


@pytest.mark.parametrize("content", [b"", b"x"])
def test_a_checkpoint_that_is_none_is_named(content, tmp_path):
  path = tmp_path / "pgd.partial.npz"
  path.write_bytes(content)
  with pytest.raises(engine.Damaged, match=r"pgd\.partial\.npz is damaged"):
    _craft(checkpoint=path)


class _Clock:
  """Each look at it takes a second."""

  def __init__(self):
    self.now = 0.0

  def monotonic(self) -> float:
    self.now += 1.0
    return self.now


def test_saving_takes_a_small_share_of_the_time(tmp_path, monkeypatch):
  clock, saves = _Clock(), []

  def save_slowly(path, arrays):
    del path, arrays
    saves.append(clock.now)

  monkeypatch.setattr(job_lib, "time", clock)
  monkeypatch.setattr(job_lib, "save_npz", save_slowly)
  monkeypatch.setattr(job_lib, "_SAVE_SECONDS", 3.0)
  _craft(
    x=np.tile(_X, (4, 1, 1, 1)), y=np.tile(_Y, 4), checkpoint=tmp_path / "p"
  )
  assert len(saves) > 1
  # A save is seen to take a second, a look at the clock.
  assert all(np.diff(saves) > 1.0 / 0.05)
