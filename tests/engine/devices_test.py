"""Four devices find what one finds, and take over from one another."""

import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from jaxadv import attacks, balls, engine
from tests import victims

_ROOT = pathlib.Path(__file__).resolve().parents[2]


def _craft(**options) -> engine.Record:
  rng = np.random.default_rng(0)
  x = rng.uniform(0.3, 0.7, size=(70, 5, 5, 1)).astype(np.float32)
  labels = victims.logits(victims.ordinary(25, 4), x).argmax(axis=1)
  attack = attacks.pgd(balls.Linf(0.03), num_steps=12, step_size=0.004)
  # Weights that were restored are bound to a device, and so may others be.
  attack, logits_fn, key = jax.device_put(
    (attack, victims.stochastic(25, 4), jax.random.key(0)), jax.devices()[0]
  )
  return engine.craft(
    attack,
    logits_fn,
    key,
    x,
    labels.astype(np.int32),
    slots=8,
    progress=False,
    **options,
  )


def _on_four_devices(tmp_path, *arguments) -> str:
  flags = "--xla_force_host_platform_device_count=4"
  done = subprocess.run(
    [sys.executable, __file__, *map(str, arguments)],
    env=os.environ
    | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(_ROOT)},
    cwd=tmp_path,
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


def _assert_same(a: engine.Record, b: engine.Record) -> None:
  np.testing.assert_allclose(a.x_adv, b.x_adv, atol=1e-6)
  for field in ("success", "steps", "forwards", "index"):
    np.testing.assert_array_equal(getattr(a, field), getattr(b, field))


def test_four_devices_agree_with_one_and_go_on_where_it_stopped(tmp_path):
  one = _craft()
  assert 0 < one.success.mean() < 1 and len(np.unique(one.steps)) > 4
  with pytest.raises(engine.Interrupted):
    _craft(checkpoint=tmp_path / "part.npz", stop=lambda: True)
  output = _on_four_devices(tmp_path, "whole.npz", "part.npz", "rest.npz")
  assert output.split() == ["4", "devices"]
  _assert_same(engine.Record.load(tmp_path / "whole.npz"), one)
  _assert_same(engine.Record.load(tmp_path / "rest.npz"), one)
  # And back: the four stopped, one goes on.
  _assert_same(_craft(checkpoint=tmp_path / "back.npz"), one)


def _main(whole, part, rest) -> None:
  print(jax.local_device_count(), "devices")
  _craft().save(whole)
  _craft(checkpoint=part).save(rest)
  try:
    _craft(checkpoint="back.npz", stop=lambda: True)
  except engine.Interrupted:
    return
  raise AssertionError("the job was not stopped")


if __name__ == "__main__":
  _main(*sys.argv[1:])
