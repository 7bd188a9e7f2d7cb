"""What the scripts share: tables of parts that flags name, and good manners.

A script keeps all it knows under `--workdir`:

  flags.txt      its flags; `--flagfile=flags.txt --workdir=...` runs it again
  metrics.jsonl  a line per report, as it goes
  results.json   written last and whole: the run is finished once it is there

On SIGTERM it saves and exits with the code `PREEMPTED`: run it again.
"""

import json
import os
import pathlib
import signal
import threading
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax
from absl import flags
from flax import linen as nn

from experiments import checkpoints
from jaxadv import balls, models, types
from jaxadv.data import augment
from jaxadv.defences import training

# Exit code of a run that was asked to stop and has saved: start it again.
PREEMPTED = 75
# Flags that say where things are, not what is done.
_PLACES = ("workdir", "data_dir")

BALLS: dict[str, Callable[[float], types.Ball]] = {
  "linf": balls.Linf,
  "l2": balls.L2,
  "l1": balls.L1,
}

# Means and standard deviations of the pixels of the training sets.
_PIXELS = {
  "digits": ((0.3053,), (0.3762,)),
  "mnist": ((0.1307,), (0.3081,)),
  "fashion_mnist": ((0.2860,), (0.3530,)),
  "cifar10": ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
  "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
  "svhn_cropped": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
}

# Name -> `(num_classes, mean, std)` -> network. The small ones take pixels as
# they are.
MODELS: dict[str, Callable[[int, tuple, tuple], nn.Module]] = {
  "seed_network": lambda n, *_: models.seed_network().clone(num_classes=n),
  "mlp": lambda n, *_: models.MLP(num_classes=n),
  "madry_cnn": lambda n, *_: models.MadryCNN(num_classes=n),
  "small_cnn": lambda n, *_: models.SmallCNN(num_classes=n),
  "strided_cnn": lambda n, *_: models.StridedCNN(num_classes=n),
  "preact_resnet18": lambda n, mean, std: models.PreActResNet(
    num_classes=n, mean=mean, std=std
  ),
  "wide_resnet28_10": lambda n, mean, std: models.WideResNet(
    num_classes=n, depth=28, mean=mean, std=std
  ),
  "wide_resnet34_10": lambda n, mean, std: models.WideResNet(
    num_classes=n, depth=34, mean=mean, std=std
  ),
}


def build_model(name: str, dataset: str, num_classes: int) -> nn.Module:
  """The network of that name, normalised for the data set if it is one to."""
  return MODELS[name](num_classes, *_PIXELS[dataset])


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


class Number(flags.ArgumentParser[float]):
  """Parses a flag that is a number or a fraction such as `8/255`.

  Use it as `flags.DEFINE(common.Number(), name, default, help,
  serializer=flags.ArgumentSerializer())`.
  """

  syntactic_help = "a number, or a fraction such as 8/255"

  def parse(self, argument: str | float) -> float:
    """Returns the number.

    Raises:
      ValueError: it is none.
    """
    try:
      top, slash, bottom = str(argument).partition("/")
      return float(top) / (float(bottom) if slash else 1.0)
    except (ValueError, ZeroDivisionError):
      raise ValueError(f"{argument!r} is not {self.syntactic_help}") from None

  def flag_type(self) -> str:
    """The name of the type in help texts."""
    return "number"


def setup() -> None:
  """Turns the persistent compilation cache on, unless one is configured.

  It lives in `$XDG_CACHE_HOME/jaxadv` or `~/.cache/jaxadv`; set
  `$JAX_COMPILATION_CACHE_DIR` for another place.
  """
  if getattr(jax.config, "jax_compilation_cache_dir", None) is None:
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    cache = pathlib.Path(home) / "jaxadv"
    jax.config.update("jax_compilation_cache_dir", str(cache))


def on_sigterm() -> Callable[[], bool]:
  """Catches SIGTERM; returns whether it has come, for loops to ask."""
  caught = threading.Event()
  signal.signal(signal.SIGTERM, lambda *_: caught.set())
  return caught.is_set


def claim(workdir: pathlib.Path) -> None:
  """Writes the script's own flags to flags.txt, or compares them with it.

  Raises:
    SystemExit: the folder belongs to a run with other flags.
  """
  path = workdir / "flags.txt"
  mine = _own_flags()
  if not path.exists():
    write_text(path, "\n".join(mine) + "\n")
    return
  theirs = path.read_text().splitlines()
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


def _says_what(line: str) -> bool:
  return line.removeprefix("--").partition("=")[0] not in _PLACES


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


def load_model(
  model_dir: str | os.PathLike, which: str = "best"
) -> tuple[types.LogitsFn, dict[str, Any]]:
  """Loads a network that `experiments.train` has trained, or is training.

  Args:
    model_dir: Its `--workdir`.
    which: "best", by validation, or "last".

  Returns:
    The bound model and what it was made for: `dataset`, `model`,
    `num_classes`, `image_shape`.

  Raises:
    FileNotFoundError: there is no model yet.
    ValueError: `which` is neither.
  """
  path = pathlib.Path(model_dir) / "model.json"
  if not path.exists():
    raise FileNotFoundError(
      f"{path} is missing: train a model with `python -m experiments.train "
      f"--workdir={model_dir}`"
    )
  info = json.loads(path.read_text())
  module = build_model(info["model"], info["dataset"], info["num_classes"])
  variables = checkpoints.restore_variables(
    model_dir, module, info["image_shape"], which
  )
  return models.bind(module.apply, variables), info
