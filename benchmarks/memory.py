"""Peak memory of what grows with draws, classes or examples.

  python -m benchmarks.memory

Each row is a process of its own: the largest resident memory, less what it had
after its imports. `engine.run` attacks 128 random images of 32 x 32 x 3 on an
untrained network.
"""

import functools
import json
import resource
import subprocess
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from flax import linen as nn

from benchmarks import results
from jaxadv import attacks, balls, criteria, engine, evaluation, models, norms

_CASE = flags.DEFINE_string(
  "case", None, "Measure this one in this process; prints JSON."
)
_JSON = flags.DEFINE_string("json", None, "Also write the rows to this file.")

_NUM_ROWS = 128


class _ConvNet(nn.Module):
  """Two 3 x 3 convolutions of 32 channels and a linear layer."""

  num_classes: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    for _ in range(2):
      conv = nn.Conv(
        32,
        (3, 3),
        conv_general_dilated=models.conv_general_dilated,
      )
      x = nn.relu(conv(x))
    return nn.Dense(self.num_classes)(x.mean(axis=(1, 2)))


def _noisy(num_classes, variables, keys, x) -> jax.Array:
  noise = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(keys)
  return _ConvNet(num_classes).apply(variables, x + 0.1 * noise)


def _run(attack, num_classes: int) -> None:
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.uniform(size=(_NUM_ROWS, 32, 32, 3)), jnp.float32)
  variables = _ConvNet(num_classes).init(jax.random.key(0), x[:1])
  model = models.bind_stochastic(
    functools.partial(_noisy, num_classes), variables
  )
  labels = jnp.arange(_NUM_ROWS) % num_classes
  jax.block_until_ready(
    engine.run(attack, model, jax.random.key(0), jnp.asarray(x), labels)
  )


def _draws(number: int) -> None:
  pgd = attacks.pgd(
    balls.Linf(0.03), num_steps=2, step_size=0.01, criterion=criteria.never
  )
  _run(attacks.eot(pgd, number), 10)


def _draws_of_boundaries(number: int) -> None:
  attack = attacks.deepfool(norms.L2, num_steps=2, num_candidates=10)
  _run(attacks.eot(attack, number), 10)


def _classes(number: int) -> None:
  attack = attacks.deepfool(norms.L2, num_steps=2, num_candidates=number)
  _run(attack, number)


def _distances(number: int) -> None:
  evaluation.distance_quantile(np.random.default_rng(0).uniform(size=number))


_CASES: dict[str, tuple[Callable[[int], None], tuple[int, ...]]] = {
  "eot of pgd, draws": (_draws, (1, 4, 16)),
  "eot of deepfool, draws": (_draws_of_boundaries, (1, 4, 16)),
  "deepfool, classes": (_classes, (10, 100)),
  "distance_quantile, examples": (_distances, (1000, 10000)),
}


def _peak() -> float:
  """Megabytes."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _measure(case: str) -> None:
  name, _, number = case.rpartition("=")
  jax.block_until_ready(jnp.zeros(1) + 1)
  before = _peak()
  _CASES[name][0](int(number))
  print(
    json.dumps(
      {"case": name, "number": int(number), "megabytes": _peak() - before}
    )
  )


def main(argv: list[str]) -> None:
  """Measures each case in a process of its own and prints the table."""
  del argv
  if _CASE.value:
    _measure(_CASE.value)
    return
  rows = []
  for name, (_, numbers) in _CASES.items():
    for number in numbers:
      done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", f"--case={name}={number}"],
        capture_output=True,
        text=True,
        check=True,
      )
      rows.append(json.loads(done.stdout.splitlines()[-1]))
  results.show("Peak memory", rows)
  if _JSON.value:
    results.save(_JSON.value, {"memory": rows})


if __name__ == "__main__":
  app.run(main)
