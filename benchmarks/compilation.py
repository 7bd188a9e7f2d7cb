"""What AutoAttack's programs take to compile, without and with the cache.

  python -m benchmarks.compilation

The whole cascade against the Madry CNN, in all the numbers of slots that
`engine.craft` shrinks to, in two processes that share a persistent compilation
cache: the second finds everything there. A first call less a second one is
tracing, compiling or loading. Budgets are of two steps: programs are the same
for all.
"""

import json
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks import results
from jaxadv import autoattack, balls, cascade, models

_CACHE_DIR = flags.DEFINE_string(
  "cache_dir", None, "Measure in this process, with this cache; prints JSON."
)
_JSON = flags.DEFINE_string("json", None, "Also write the rows to this file.")

_SLOTS = (128, 64, 32, 16)
# Breaks nothing, so that every attack has all examples to do.
_BALL = balls.Linf(1e-6)


def _seconds() -> dict[str, float]:
  """Seconds of first calls beyond those of second ones, by attack."""
  rng = np.random.default_rng(0)
  x = rng.uniform(size=(max(_SLOTS), 28, 28, 1)).astype(np.float32)
  module = models.MadryCNN(num_classes=10)
  logits_fn = models.bind(module.apply, module.init(jax.random.key(0), x[:1]))
  keys = jax.random.split(jax.random.key(0), len(x))
  labels = (
    np.asarray(logits_fn(keys, jnp.asarray(x))).argmax(axis=-1).astype(np.int32)
  )
  table = {
    name: attack._replace(num_steps=2)
    for name, attack in autoattack.standard(_BALL, num_classes=10).items()
  }
  total = dict.fromkeys(table, 0.0)
  for slots in _SLOTS:
    first, second = (
      cascade.cascade(
        table,
        logits_fn,
        jax.random.key(0),
        x[:slots],
        labels[:slots],
        ball=_BALL,
        slots=max(_SLOTS),
        progress=False,
      ).seconds
      for _ in range(2)
    )
    for name in total:
      total[name] += first[name] - second[name]
  return total


def main(argv: list[str]) -> None:
  """Measures in two processes and prints the table."""
  del argv
  if _CACHE_DIR.value:
    jax.config.update("jax_compilation_cache_dir", _CACHE_DIR.value)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    print(json.dumps(_seconds()))
    return
  rows = []
  with tempfile.TemporaryDirectory() as folder:
    command = [sys.executable, "-m", "benchmarks.compilation"]
    for name in ("empty", "full"):
      done = subprocess.run(
        [*command, f"--cache_dir={folder}"],
        capture_output=True,
        text=True,
        check=True,
      )
      seconds = json.loads(done.stdout.splitlines()[-1])
      rows.append(
        {"cache": name, **seconds, "sum": float(sum(seconds.values()))}
      )
  results.show("Seconds of tracing and compiling", rows)
  if _JSON.value:
    results.save(_JSON.value, {"compilation": rows})


if __name__ == "__main__":
  app.run(main)
