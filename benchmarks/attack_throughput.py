"""How close attacks come to the bare limit.

The limit is the oracle calls that were needed, times the seconds of the bare
jitted input gradient at its best batch size.

  python -m benchmarks.attack_throughput --json=throughput.json

The first table takes one batch through all steps (`engine.run`, as adversarial
training does), the second a data set (`engine.craft`). With `--nets` and
`--data_dir` the second uses given networks on MNIST; else two that it trains.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks import results, timing, victims
from jaxadv import attacks, balls, criteria, engine, losses, models

_JSON = flags.DEFINE_string("json", None, "Also write the rows to this file.")
_NETS = flags.DEFINE_string(
  "nets", None, "An .npz file of weights (see `victims.variables`)."
)
_DATA_DIR = flags.DEFINE_string(
  "data_dir", None, "Attack MNIST from this TFDS folder, not the digits."
)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Warm calls of each program.")
_RUN_STEPS = flags.DEFINE_integer("run_steps", 5, "PGD steps of `run`.")
_CRAFT_STEPS = flags.DEFINE_integer("craft_steps", 100, "PGD steps of `craft`.")
_EXAMPLES = flags.DEFINE_integer("examples", 1_000, "Images for `craft`.")
_SLOTS = flags.DEFINE_list("slots", ["64"], "Slots of `craft`, each in turn.")
_EPS = flags.DEFINE_float("eps", 0.1, "Linf radius for `craft`.")

# Network, shape of its inputs, batch sizes.
_NETWORKS: dict[str, Any] = {
  "Madry CNN": (models.MadryCNN(), (28, 28, 1), (32, 128)),
  "PreActResNet-18": (models.PreActResNet(), (32, 32, 3), (8, 32)),
}
_CRAFT_BATCHES = (64, 128, 256)


@jax.jit
def _gradient(logits_fn, x: jax.Array, label: jax.Array) -> jax.Array:
  """The bare input gradient, weights as arguments."""

  def total(x: jax.Array) -> jax.Array:
    logits = logits_fn(None, x)
    return jnp.sum(jax.vmap(losses.cross_entropy)(logits, label))

  return jax.grad(total)(x)


def _one_batch(name: str) -> list[dict[str, Any]]:
  """Rows of the first table: the gradient and `run` at each batch size."""
  net, shape, batch_sizes = _NETWORKS[name]
  variables = jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, *shape)))
  logits_fn = models.bind(net.apply, variables)
  attack = attacks.pgd(
    balls.Linf(0.3),
    num_steps=_RUN_STEPS.value,
    step_size=0.01,
    criterion=criteria.never,
  )
  key = jax.random.key(1)
  programs: dict[Any, Any] = {}
  for size in batch_sizes:
    x = jax.random.uniform(key, (size, *shape))
    label = jnp.arange(size) % 10
    programs["gradient", size] = functools.partial(
      _gradient, logits_fn, x, label
    )
    programs["run", size] = functools.partial(
      engine.run, attack, logits_fn, key, x, label
    )
  timings = timing.interleaved(programs, _ROUNDS.value)
  best = _best(timings)
  return [
    {
      "network": name,
      "program": program,
      "batch": size,
      "seconds": found.median,
      "share_of_limit": _calls(program) * size * timing.ratio(best, found),
      "compile_seconds": found.compilation,
    }
    for (program, size), found in timings.items()
  ]


def _calls(program: str) -> int:
  return _RUN_STEPS.value if program == "run" else 1


def _best(timings: dict[Any, timing.Timing]) -> timing.Timing:
  """Seconds per example of the gradient at its best batch size."""
  gradients = [
    timing.Timing(found.first / size, found.rounds / size)
    for (program, size), found in timings.items()
    if program == "gradient"
  ]
  return min(gradients, key=lambda found: found.median)


def _data_set() -> list[dict[str, Any]]:
  """Rows of the second table: `craft` on each network, per number of slots."""
  x, label = victims.images(_DATA_DIR.value, _EXAMPLES.value)
  nets = victims.variables(_NETS.value, _EPS.value)
  bound = {kind: victims.bind(variables) for kind, variables in nets.items()}
  attack = attacks.pgd(
    balls.Linf(_EPS.value), num_steps=_CRAFT_STEPS.value, step_size=0.01
  )

  def craft(attack, job):
    kind, slots = job
    key = jax.random.key(2)
    return engine.craft(
      attack, bound[kind], key, x, label, slots=slots, progress=False
    )

  programs: dict[Any, Any] = {}
  for size in _CRAFT_BATCHES:
    rows = np.arange(size) % len(x)
    programs["gradient", size] = functools.partial(
      _gradient, bound["hardened"], x[rows], label[rows]
    )
  jobs = [(kind, int(slots)) for kind in bound for slots in _SLOTS.value]
  programs |= {job: functools.partial(craft, attack, job) for job in jobs}
  timings = timing.interleaved(programs, _ROUNDS.value)
  return [
    _job_row(attack, functools.partial(craft, job=job), job, timings)
    for job in jobs
  ]


def _job_row(attack, craft, job, timings) -> dict[str, Any]:
  """One row; crafts once more to count what the device executes."""
  counter = _Counter()
  record = craft(counter.counted(attack))
  jax.effects_barrier()
  needed = int(record.steps.sum())
  return {
    "network": job[0],
    "slots": job[1],
    "robust_accuracy": 1.0 - float(record.success.mean()),
    "needed_calls": needed,
    "executed_over_needed": counter.rows / needed,
    "seconds": timings[job].median,
    "share_of_limit": needed * timing.ratio(_best(timings), timings[job]),
    "compile_seconds": timings[job].compilation,
  }


class _Counter:
  """Counts the oracle calls that a device executes, empty slots included."""

  def __init__(self):
    self.rows = 0

  def counted(self, attack: Any) -> Any:
    """The attack, each of whose steps is counted; not to be timed."""
    step = jax.tree_util.Partial(self._step, attack.step)
    return attack._replace(step=step)

  def _step(self, step, logits_fn, state) -> Any:
    jax.debug.callback(functools.partial(self._add, len(state.done)))
    return step(logits_fn, state)

  def _add(self, rows: int) -> None:
    self.rows += rows


def main(argv: list[str]) -> None:
  """Times both kinds of jobs and prints the two tables."""
  del argv
  batches = [row for name in _NETWORKS for row in _one_batch(name)]
  results.show(f"One batch, {_RUN_STEPS.value} steps", batches)
  jobs = _data_set()
  results.show(f"A data set, at most {_CRAFT_STEPS.value} steps", jobs)
  if _JSON.value:
    results.save(_JSON.value, {"one_batch": batches, "data_set": jobs})


if __name__ == "__main__":
  app.run(main)
