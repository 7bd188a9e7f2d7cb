"""What the scripts share: tables of parts that flags name, and good manners.

A script keeps all it knows under `--workdir`:

  flags.txt      its flags; `--flagfile=flags.txt --workdir=...` runs it again
  metrics.jsonl  a line per report, as it goes
  results.json   written last and whole: the run is finished once it is there
  lock           held by the process that works there

On SIGTERM and Ctrl-C it saves and exits as `manners` says: run it again.
"""

import contextlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from absl import flags, logging

from experiments import manners
from jaxadv import balls, engine, types
from jaxadv.data import augment
from jaxadv.defences import training

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

  Raises:
    SystemExit: JAX has no device to compute on.
  """
  logging.set_verbosity(logging.WARNING)
  if getattr(jax.config, "jax_compilation_cache_dir", None) is None:
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    cache = pathlib.Path(home) / "jaxadv"
    jax.config.update("jax_compilation_cache_dir", str(cache))
  manners.check_devices()
  return manners.on_sigterm()


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

  Writes nothing where there is nothing: `claim` the folder once all else has
  been checked.

  Raises:
    SystemExit: the folder belongs to a run with other flags, or another process
      works there.
    engine.Damaged: flags.txt or results.json cannot be read.
  """
  begun = (workdir / "flags.txt").exists()
  if begun:
    _compare_flags(workdir)
  path = workdir / "results.json"
  if path.exists():
    read_json(path)
    print(f"already finished: {path}")
    return True
  if begun:
    manners.alone(workdir)
  return False


def claim(workdir: pathlib.Path) -> None:
  """Writes the script's own flags to flags.txt, or compares them with it.

  From then on the folder is this process's alone.

  Raises:
    SystemExit: the folder belongs to a run with other flags, another process
      works there, or it cannot be written.
    engine.Damaged: flags.txt cannot be read.
  """
  manners.alone(workdir)
  if (workdir / "flags.txt").exists():
    _compare_flags(workdir)
    return
  try:
    write_text(workdir / "flags.txt", "\n".join(_own_flags()) + "\n")
  except OSError as error:
    raise SystemExit(
      f"--workdir={workdir} cannot be written ({error}): choose another"
    ) from error


def begun_with(workdir: pathlib.Path) -> list[str]:
  """The lines of flags.txt; none where there is no such file.

  Raises:
    engine.Damaged: there is one that holds no flags.
  """
  path = workdir / "flags.txt"
  if not path.exists():
    return []
  advice = f"choose another --workdir, or delete {workdir} to start afresh"
  with manners.undamaged(path, advice):
    lines = path.read_text().splitlines()
    if not lines or not lines[0].startswith("--"):
      raise ValueError("it holds no flags")
  return lines


def _compare_flags(workdir: pathlib.Path) -> None:
  path = workdir / "flags.txt"
  mine, theirs = _own_flags(), begun_with(workdir)
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


def read_json(path: str | os.PathLike) -> dict[str, Any]:
  """What `write_json` wrote, an object.

  Raises:
    engine.Damaged: the file holds something else.
  """
  with manners.undamaged(path):
    content = json.loads(pathlib.Path(path).read_text())
    if not isinstance(content, dict):
      raise TypeError(f"it holds no object but {type(content).__name__}")
  return content


def append_metrics(
  workdir: pathlib.Path, step: int, metrics: Mapping[str, float]
) -> None:
  """Adds a line to metrics.jsonl."""
  with open(workdir / "metrics.jsonl", "a") as file:
    file.write(json.dumps({"step": step, **metrics}) + "\n")


def truncate_metrics(workdir: pathlib.Path, step: int) -> None:
  """Drops the lines after `step`, and one that a kill cut short.

  Raises:
    engine.Damaged: another line cannot be read.
  """
  kept = [row for row in read_metrics(workdir) if row["step"] <= step]
  lines = (json.dumps(row) + "\n" for row in kept)
  write_text(workdir / "metrics.jsonl", "".join(lines))


def read_metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
  """The rows of metrics.jsonl; a last one that a kill cut short is none.

  Raises:
    engine.Damaged: another line cannot be read.
  """
  path = workdir / "metrics.jsonl"
  with manners.undamaged(path):
    lines = path.read_text().splitlines() if path.exists() else []
  rows = []
  for number, line in enumerate(lines, 1):
    try:
      row = json.loads(line)
      row["step"] + 0
    except (LookupError, TypeError, ValueError) as error:
      if number == len(lines):
        break
      raise engine.Damaged(
        f"{path} is damaged at line {number}: delete that line and run the "
        "same command again"
      ) from error
    rows.append(row)
  return rows
