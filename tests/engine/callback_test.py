"""Models behind Python functions, where a process has several devices."""

import os
import pathlib
import subprocess
import sys

import jax
import numpy as np

from jaxadv import attacks, balls, engine, models, programs

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_W = np.random.default_rng(0).normal(size=(784, 10)).astype(np.float32)


def _scores(x):
  return x.reshape(len(x), -1) @ _W


def _craft() -> engine.Record:
  rng = np.random.default_rng(1)
  x = rng.uniform(size=(256, 28, 28, 1)).astype(np.float32)
  return engine.craft(
    attacks.square(balls.Linf(0.01), num_queries=5),
    models.from_callable(_scores, 10),
    jax.random.key(0),
    x,
    _scores(x).argmax(axis=1).astype(np.int32),
    progress=False,
  )


def test_two_devices_do_not_wait_for_each_other(tmp_path):
  """Callbacks of two devices, with 400 KB each, waited for ever."""
  done = subprocess.run(
    [sys.executable, __file__],
    env=os.environ
    | {
      "JAX_NUM_CPU_DEVICES": "2",
      "JAX_PLATFORMS": "cpu",
      "PYTHONPATH": str(_ROOT),
    },
    cwd=tmp_path,
    capture_output=True,
    text=True,
    timeout=240,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.split() == ["2", "256"]


def test_callbacks_are_found_wherever_they_are():
  x = np.zeros((2, 28, 28, 1), np.float32)
  model = models.from_callable(_scores, 10)
  assert programs.calls_back(model, x)
  looped = jax.tree_util.Partial(_in_a_loop, model)
  assert programs.calls_back(looped, x)
  plain = models.bind(lambda w, x: x.reshape(len(x), -1) @ w, _W)
  assert not programs.calls_back(plain, x)
  assert programs.calls_back(jax.tree_util.Partial(_printing, plain), x)


def _printing(model, keys, x):
  jax.debug.print("{}", x.sum())
  return model(keys, x)


def _in_a_loop(model, keys, x):
  return jax.lax.fori_loop(0, 2, lambda _, z: model(keys, x), model(keys, x))


if __name__ == "__main__":
  record = _craft()
  print(jax.local_device_count(), len(record.success))
