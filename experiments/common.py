"""What the scripts share: tables of parts that flags name, and good manners.

A script keeps all it knows under `--workdir`:

  flags.txt      its flags; `--flagfile=flags.txt --workdir=...` runs it again
  metrics.jsonl  a line per report, as it goes
  results.json   written last and whole: the run is finished once it is there

On SIGTERM it saves and exits with the code `PREEMPTED`: run it again.
"""

import contextlib
import json
import os
import pathlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import optax
from absl import flags, logging

from jaxadv import balls, engine, types
from jaxadv.data import augment
from jaxadv.defences import training

# Exit code of a run that was asked to stop and has saved: start it again.
PREEMPTED = 75
# With more, each would have few of the usual number of slots.
_MOST_DEVICES = 8
_AFFINITY = hasattr(os, "sched_getaffinity")
# Flags that say where things are, not what is done.
_PLACES = ("workdir", "data_dir")

BALLS: dict[str, Callable[[types.Scalar], types.Ball]] = {
  "linf": balls.Linf,
  "l2": balls.L2,
  "l1": balls.L1,
}


def _cyclic(learning_rate: float, num_steps: int) -> optax.Schedule:
  top = max(1, 2 * num_steps // 5)
  rise = optax.linear_schedule(0.0, learning_rate, top)
  fall = optax.linear_schedule(learning_rate, 0.0, max(1, num_steps - top))
  return optax.join_schedules([rise, fall], [top])


# Name -> `(learning_rate, num_steps)` -> schedule. piecewise: a tenth after
# half and again after three quarters (Rice et al., 2020); cyclic: up for two
# fifths, then down to zero (Wong et al., 2020).
SCHEDULES: dict[str, Callable[[float, int], optax.Schedule]] = {
  "constant": lambda rate, num_steps: optax.constant_schedule(rate),
  "cosine": optax.cosine_decay_schedule,
  "piecewise": lambda rate, num_steps: optax.piecewise_constant_schedule(
    rate, {num_steps // 2: 0.1, 3 * num_steps // 4: 0.1}
  ),
  "cyclic": _cyclic,
}


def _sgd(schedule, momentum, weight_decay):
  return optax.chain(
    optax.add_decayed_weights(weight_decay),
    optax.sgd(schedule, momentum=momentum or None, nesterov=momentum > 0),
  )


def _adam(schedule, momentum, weight_decay):
  return optax.chain(
    optax.add_decayed_weights(weight_decay), optax.adam(schedule, b1=momentum)
  )


# Name -> `(schedule, momentum, weight_decay)` -> optimiser. Weight decay is on
# every weight; in sgd and adam it joins the gradient as in PyTorch, in adamw
# it is decoupled.
OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
  "sgd": _sgd,
  "adam": _adam,
  "adamw": lambda schedule, momentum, weight_decay: optax.adamw(
    schedule, b1=momentum, weight_decay=weight_decay
  ),
}


def _on_images(
  transform: Callable[..., jax.Array],
) -> Callable[[int], training.Augment]:
  # He et al. (2016) pad the 32 pixels of CIFAR by 4.
  def build(side: int) -> training.Augment:
    return lambda key, batch: {
      **batch,
      "image": transform(key, batch["image"], padding=side // 8),
    }

  return build


# Name -> image side -> augmentation of training batches.
AUGMENTATIONS: dict[str, Callable[[int], training.Augment | None]] = {
  "none": lambda side: None,
  "crop": _on_images(augment.random_crop),
  "crop_flip": _on_images(augment.random_crop_flip),
}


def optimizer(
  name: str,
  learning_rate: optax.Schedule,
  *,
  momentum: float,
  weight_decay: float,
  accumulate: int,
) -> optax.GradientTransformation:
  """The optimiser of that name, which moves every `accumulate` steps."""
  every = OPTIMIZERS[name](learning_rate, momentum, weight_decay)
  if accumulate == 1:
    return every
  return optax.MultiSteps(every, accumulate).gradient_transformation()


def only_flags(argv: Sequence[str]) -> None:
  """Refuses words that belong to no flag, such as a second item of a list.

  Raises:
    SystemExit: there are such.
  """
  if words := argv[1:]:
    raise SystemExit(
      f"{' '.join(words)}: no flag; write --flag=value, and lists with commas "
      "and without spaces"
    )


def setup() -> Callable[[], bool]:
  """Prepares the process; returns whether SIGTERM has come, for loops to ask.

  Turns the persistent compilation cache on, unless one is configured. It lives
  in `$XDG_CACHE_HOME/jaxadv` or `~/.cache/jaxadv`; set
  `$JAX_COMPILATION_CACHE_DIR` for another place.
  """
  logging.set_verbosity(logging.WARNING)
  if getattr(jax.config, "jax_compilation_cache_dir", None) is None:
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    cache = pathlib.Path(home) / "jaxadv"
    jax.config.update("jax_compilation_cache_dir", str(cache))
  return on_sigterm()


def every_core() -> None:
  """Makes a device of each core, for XLA runs small operations on one core.

  For scripts that attack, before the first use of JAX: too late, it does
  nothing, and so where `$JAX_NUM_CPU_DEVICES` or `$XLA_FLAGS` say how many.
  """
  told = getattr(jax.config, "jax_num_cpu_devices", -1) != -1
  if told or "device_count" in os.environ.get("XLA_FLAGS", ""):
    return
  cores = len(os.sched_getaffinity(0)) if _AFFINITY else os.cpu_count() or 1
  with contextlib.suppress(RuntimeError):
    jax.config.update("jax_num_cpu_devices", min(cores, _MOST_DEVICES))


def slots_each(slots: int) -> int:
  """Slots of each device: the cores of a CPU share them, as its memory."""
  if jax.default_backend() != "cpu":
    return slots
  return -(-slots // jax.local_device_count())


def on_sigterm() -> Callable[[], bool]:
  """Catches SIGTERM; returns whether it has come, for loops to ask."""
  caught = threading.Event()
  signal.signal(signal.SIGTERM, lambda *_: caught.set())
  return caught.is_set


@contextlib.contextmanager
def preemptible() -> Iterator[None]:
  """Exits with `PREEMPTED` where what is inside was interrupted.

  Raises:
    SystemExit: that, or `--slots` asked for too much memory.
  """
  try:
    yield
  except MemoryError as error:
    raise SystemExit(f"--slots: {error}") from error
  except engine.Interrupted:
    print("stopped; run the same command again to go on")
    sys.exit(PREEMPTED)


@contextlib.contextmanager
def explained(flag: str) -> Iterator[None]:
  """Turns what a library refuses into one line that begins with the flag.

  Raises:
    SystemExit: it was refused.
  """
  try:
    yield
  except (OSError, TypeError, ValueError) as error:
    raise SystemExit(f"{flag}: {error}") from error


def finished(workdir: pathlib.Path) -> bool:
  """Whether the folder holds the results of these flags; says so.

  Writes nothing: `claim` the folder once all else has been checked.

  Raises:
    SystemExit: the folder belongs to a run with other flags.
  """
  if (workdir / "flags.txt").exists():
    claim(workdir)
  found = (workdir / "results.json").exists()
  if found:
    print(f"already finished: {workdir / 'results.json'}")
  return found


def claim(workdir: pathlib.Path) -> None:
  """Writes the script's own flags to flags.txt, or compares them with it.

  Raises:
    SystemExit: the folder belongs to a run with other flags, or cannot be
      written.
  """
  path = workdir / "flags.txt"
  mine = _own_flags()
  if not path.exists():
    try:
      write_text(path, "\n".join(mine) + "\n")
    except OSError as error:
      raise SystemExit(
        f"--workdir={workdir} cannot be written ({error}): choose another"
      ) from error
    return
  theirs = path.read_text().splitlines()
  if strange := [line for line in theirs if _name(line) not in flags.FLAGS]:
    raise SystemExit(
      f"--workdir={workdir} holds a run of another script, with {strange[0]}: "
      "choose another --workdir"
    )
  changed = [line for line in mine if line not in theirs and _says_what(line)]
  gone = [line for line in theirs if line not in mine and _says_what(line)]
  if changed or gone:
    raise SystemExit(
      f"--workdir={workdir} holds a run with other flags: it has "
      f"{' '.join(gone) or 'none'} where this one has "
      f"{' '.join(changed) or 'none'}. Choose another --workdir, or go on with "
      f"--flagfile={path}."
    )


def _own_flags() -> list[str]:
  values = flags.FLAGS
  module = values.find_module_defining_flag("workdir")
  own = values.flags_by_module_dict()[str(module)]
  lines = (flag.serialize() for flag in own if flag.value is not None)
  return sorted(line for line in lines if line)


def _name(line: str) -> str:
  return line.removeprefix("--").partition("=")[0]


def _says_what(line: str) -> bool:
  return _name(line) not in _PLACES


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a file whole or not at all, making its folder."""
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
  temporary.write_text(text)
  os.replace(temporary, path)


def write_json(path: str | os.PathLike, content: Any) -> None:
  """Writes a JSON file whole or not at all."""
  write_text(pathlib.Path(path), json.dumps(content, indent=2) + "\n")


def append_metrics(
  workdir: pathlib.Path, step: int, metrics: Mapping[str, float]
) -> None:
  """Adds a line to metrics.jsonl."""
  with open(workdir / "metrics.jsonl", "a") as file:
    file.write(json.dumps({"step": step, **metrics}) + "\n")


def truncate_metrics(workdir: pathlib.Path, step: int) -> None:
  """Drops the lines after `step`, and one that a kill cut short."""
  path = workdir / "metrics.jsonl"
  lines = path.read_text().splitlines() if path.exists() else []
  kept = []
  for line in lines:
    try:
      if json.loads(line)["step"] > step:
        break
    except json.JSONDecodeError:
      break
    kept.append(line + "\n")
  write_text(path, "".join(kept))
