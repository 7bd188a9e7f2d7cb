"""The same job through jaxadv and through libraries for PyTorch.

  python -m benchmarks.against --peer_python=peers/bin/python
  python -m benchmarks.against --peer_python=... --attack=autoattack --rounds=1

Same weights, images, radius, batch size and number of threads. The peers run in
an environment of their own (`requirements-peers.txt`), one process per library
and round, after a few images that are not timed; a library that is not
installed is left out, with a warning. All images are judged by the same
code, here.
"""

import functools
import os
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging

from benchmarks import peers, results, timing, victims
from jaxadv import (
  attacks,
  autoattack,
  balls,
  cascade,
  criteria,
  engine,
  evaluation,
  types,
)
from jaxadv.engine import record

# By name: the ball, and what the authors' code calls it.
_BALLS: dict[str, tuple[Callable[[float], types.Ball], str]] = {
  "linf": (balls.Linf, "Linf"),
  "l2": (balls.L2, "L2"),
  "l1": (balls.L1, "L1"),
}

_PEER_PYTHON = flags.DEFINE_string(
  "peer_python", None, "The interpreter that has the peers.", required=True
)
_ATTACK = flags.DEFINE_enum(
  "attack", "pgd", ["pgd", "autoattack"], "The job; pgd is in Linf."
)
_NORM = flags.DEFINE_enum(
  "norm", "linf", list(_BALLS), "Of autoattack; Linf alone for torchattacks."
)
_NETS = flags.DEFINE_string(
  "nets", None, "An .npz file of weights (see `victims.variables`)."
)
_DATA_DIR = flags.DEFINE_string(
  "data_dir", None, "Attack MNIST from this TFDS folder, not the digits."
)
_MODEL_DIRS = flags.DEFINE_list(
  "model_dirs", [], "These models of experiments.train, too."
)
_SMALL = flags.DEFINE_bool("small_nets", True, "The two nets of `victims`.")
_EXAMPLES = flags.DEFINE_integer("examples", 512, "Images to attack.")
_STEPS = flags.DEFINE_integer("num_steps", 40, "PGD steps.")
_EPS = flags.DEFINE_float("eps", 0.1, "The radius.")
_BATCH = flags.DEFINE_integer("batch_size", 128, "Images at once.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Timed calls of each library.")
_THREADS = flags.DEFINE_integer("threads", 2, "Cores for every library.")
_JSON = flags.DEFINE_string("json", None, "Also write the rows to this file.")

_STEP_SIZE = 0.01


def _run(logits_fn, x: np.ndarray, label: np.ndarray) -> np.ndarray:
  """All steps for all images, as the peers do it."""
  attack = attacks.pgd(
    balls.Linf(_EPS.value),
    num_steps=_STEPS.value,
    step_size=_STEP_SIZE,
    criterion=criteria.never,
  )
  found = []
  for start in range(0, len(x), _BATCH.value):
    rows = slice(start, start + _BATCH.value)
    key = jax.random.key(start)
    batch = jnp.asarray(x[rows])
    found.append(engine.run(attack, logits_fn, key, batch, label[rows]))
  return np.concatenate(found)


def _craft(logits_fn, x: np.ndarray, label: np.ndarray) -> np.ndarray:
  """Each image until it is misclassified."""
  attack = attacks.pgd(
    balls.Linf(_EPS.value), num_steps=_STEPS.value, step_size=_STEP_SIZE
  )
  return engine.craft(
    attack,
    logits_fn,
    jax.random.key(0),
    x,
    label,
    slots=_slots(),
    progress=False,
  ).x_adv


def _cascade(logits_fn, x: np.ndarray, label: np.ndarray) -> np.ndarray:
  """AutoAttack's standard version, of networks of ten classes."""
  ball = _BALLS[_NORM.value][0](_EPS.value)
  return cascade.cascade(
    autoattack.standard(ball, num_classes=10),
    logits_fn,
    jax.random.key(0),
    x,
    label,
    slots=_slots(),
    progress=False,
  ).record.x_adv


def _slots() -> int:
  """As many examples at once as the peers, over all devices."""
  return max(1, _BATCH.value // jax.local_device_count())


# By job; ratios are to the first.
_OURS = {
  "pgd": {"jaxadv run": _run, "jaxadv craft": _craft},
  "autoattack": {"jaxadv cascade": _cascade},
}
_PEERS = {
  "pgd": ("foolbox", "torchattacks", "art"),
  "autoattack": (
    "torchattacks AutoAttack",
    "torchattacks AutoAttack, 100 steps",
    "autoattack",
    "pyautoattack",
  ),
}


def _peer(
  library: str, job: pathlib.Path
) -> tuple[np.ndarray, np.ndarray] | None:
  """Seconds and images of one library; None if it is not installed."""
  result = job.with_name("result.npz")
  try:
    peers.run(_PEER_PYTHON.value, "benchmarks.peer", [library, job, result])
  except peers.MissingError as error:
    logging.warning("left out %s: %s", library, error)
    return None
  with np.load(result) as file:
    return file["seconds"], file["x_adv"]


def _rounds(
  logits_fn, x, label, job
) -> tuple[dict[str, list[np.ndarray]], dict[str, np.ndarray]]:
  """Seconds per round and the images of each library, in turn."""
  seconds: dict[str, list[np.ndarray]] = {}
  images: dict[str, np.ndarray] = {}
  ours, libraries = _OURS[_ATTACK.value], list(_PEERS[_ATTACK.value])
  if _NORM.value != "linf":
    libraries = [n for n in libraries if not n.startswith("torchattacks")]
  first = {}
  for name, attack in ours.items():
    # Programs are shared by networks: without this the second had them all.
    jax.clear_caches()
    found: list[np.ndarray] = []
    program = functools.partial(_kept, attack, logits_fn, x, label, found)
    first[f"{name}, first call"] = timing.clocks(program)
    images[name] = images[f"{name}, first call"] = found[0]
    seconds[name] = []
  for _ in range(_ROUNDS.value):
    for name, attack in ours.items():
      program = functools.partial(attack, logits_fn, x, label)
      seconds[name].append(timing.clocks(program))
    for library in list(libraries):
      timed = _peer(library, job)
      if timed is None:
        libraries.remove(library)
      else:
        images[library] = timed[1]
        seconds.setdefault(library, []).append(timed[0])
  rounds = range(_ROUNDS.value)
  seconds |= {name: [clock for _ in rounds] for name, clock in first.items()}
  return seconds, images


def _kept(attack, logits_fn, x, label, found: list[np.ndarray]) -> np.ndarray:
  """The images, left in `found` as well."""
  found.append(attack(logits_fn, x, label))
  return found[-1]


def _rows(net: victims.Net, folder: str) -> list[dict[str, Any]]:
  """The lines of the table for one network."""
  # Whole batches, so that no library compiles or warms up for a smaller one.
  whole = len(net.x) // _BATCH.value * _BATCH.value
  if not whole:
    raise ValueError(f"batch_size={_BATCH.value}: at most {len(net.x)} images")
  net = net._replace(x=net.x[:whole], label=net.label[:whole])
  job = pathlib.Path(folder) / "job.npz"
  settings: dict[str, Any] = {
    "eps": _EPS.value,
    "norm": _BALLS[_NORM.value][1],
    "step_size": _STEP_SIZE,
    "num_steps": _STEPS.value,
    "batch_size": _BATCH.value,
    "threads": _THREADS.value,
  }
  record.save_npz(
    job,
    victims.job(net) | {k: np.asarray(v) for k, v in settings.items()},
  )
  seconds, images = _rounds(net.logits_fn, net.x, net.label, job)
  return [_row(net, name, seconds, images[name]) for name in seconds]


def _row(net: victims.Net, name, seconds, x_adv) -> dict[str, Any]:
  """One line of the table; the accuracy is judged afresh."""
  delta = (x_adv - net.x).reshape(len(net.x), -1)
  first = next(iter(_OURS[_ATTACK.value]))
  rounds, ours = np.asarray(seconds[name]), np.asarray(seconds[first])
  wall, processor = np.median(rounds, axis=0)
  wall_ratio, processor_ratio = np.median(rounds / ours, axis=0)
  return {
    "network": net.name,
    "library": name,
    "seconds": float(wall),
    f"times_{first}": float(wall_ratio),
    "processor_seconds": float(processor),
    f"times_{first}_processor": float(processor_ratio),
    "robust_accuracy": evaluation.accuracy(
      net.logits_fn, jax.random.key(0), x_adv, net.label
    ),
    "largest_linf": float(np.abs(delta).max()),
    "largest_l2": float(np.linalg.norm(delta, axis=1).max()),
    "largest_l1": float(np.abs(delta).sum(axis=1).max()),
  }


def main(argv: list[str]) -> None:
  """Times every library on both networks and prints the table."""
  del argv
  # Inherited by the peers; JAX starts its threads later, at its first use.
  cores = sorted(os.sched_getaffinity(0))[: _THREADS.value]
  os.sched_setaffinity(0, cores)
  # A device per core: XLA runs small operations of one device on one core.
  jax.config.update("jax_num_cpu_devices", len(cores))
  data_dir, num_examples = _DATA_DIR.value, _EXAMPLES.value
  nets = victims.trained_nets(_MODEL_DIRS.value, data_dir, num_examples)
  if _SMALL.value:
    small = (_NETS.value, data_dir, num_examples, _EPS.value)
    nets = victims.small_nets(*small) + nets
  rows = []
  with tempfile.TemporaryDirectory() as folder:
    for net in nets:
      rows += _rows(net, folder)
  steps = f", {_STEPS.value} steps" if _ATTACK.value == "pgd" else ""
  results.show(f"{_ATTACK.value}{steps}", rows)
  if _JSON.value:
    results.save(_JSON.value, {"against": rows})


if __name__ == "__main__":
  app.run(main)
