"""What a step of adversarial training costs, in plain steps.

  python -m benchmarks.training_throughput

A plain step is a gradient of the weights and its update; adversarial training
with k attack steps needs k + 1 gradients. `share` is the time of the
adversarial step over k + 1 plain ones: at most 1 where the input gradients of
the attack cost no more than those of the weights.
"""

import functools

import jax
import numpy as np
import optax
from absl import app, flags

from benchmarks import results, timing
from jaxadv import balls, models, train_state
from jaxadv.defences import adversaries, training

_STEPS = flags.DEFINE_list("num_steps", ["1", "7", "10"], "Attack steps, k.")
_NETS = flags.DEFINE_list(
  "nets", ["strided_cnn", "preact_resnet18"], "Networks to train."
)
_BATCH = flags.DEFINE_integer("batch_size", 128, "Rows of a batch.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Timed calls of each step.")
_JSON = flags.DEFINE_string("json", None, "Also write the rows to this file.")

_NETWORKS = {
  "strided_cnn": (models.StridedCNN, (28, 28, 1)),
  "preact_resnet18": (models.PreActResNet, (32, 32, 3)),
}


def _step(module, robust_loss, attack, state, batch):
  return training.train_step(
    state,
    batch,
    train_apply=train_state.train_apply(module),
    robust_loss=robust_loss,
    attack=attack,
  )


def _program(module, state, batch, num_steps: int):
  """A call that makes one step, of plain training where there is no attack."""
  if num_steps:
    attack = adversaries.pgd(
      balls.Linf(0.1), num_steps=num_steps, step_size=0.02
    )
    step = functools.partial(_step, module, training.madry, attack)
  else:
    step = functools.partial(_step, module, training.standard, None)
  return functools.partial(jax.jit(step), state, batch)


def _rows(name: str) -> list[results.Row]:
  build, shape = _NETWORKS[name]
  module = build()
  rng = np.random.default_rng(0)
  x = rng.uniform(size=(_BATCH.value, *shape)).astype(np.float32)
  label = rng.integers(0, 10, _BATCH.value)
  state = train_state.create(
    module, optax.sgd(0.01, momentum=0.9), jax.random.key(0), x[:1]
  )
  batch = jax.device_put({"image": x, "label": label})
  budgets = [0, *map(int, _STEPS.value)]
  timings = timing.interleaved(
    {k: _program(module, state, batch, k) for k in budgets}, _ROUNDS.value
  )
  return [
    {
      "network": name,
      "attack_steps": k,
      "seconds": timings[k].median,
      "plain_steps": timing.ratio(timings[k], timings[0]),
      "share": timing.ratio(timings[k], timings[0]) / (k + 1),
      "compile_seconds": timings[k].compilation,
    }
    for k in budgets
  ]


def main(argv: list[str]) -> None:
  """Times the steps in turn and prints the table."""
  del argv
  rows = [row for name in _NETS.value for row in _rows(name)]
  results.show(f"Training steps, {_BATCH.value} rows", rows)
  if _JSON.value:
    results.save(_JSON.value, {"training": rows})


if __name__ == "__main__":
  app.run(main)
