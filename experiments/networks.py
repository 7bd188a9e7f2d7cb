"""The networks that `--model` can name, fresh or trained."""

import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from experiments import checkpoints, recipes
from jaxadv import models, types

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

# Name -> the least height and width of its images, where 8 are too few.
SMALLEST_SIDE = {"small_cnn": 16}


def build_model(
  name: str,
  dataset: str,
  num_classes: int,
  defence: str = "none",
  dtype: str = "float32",
) -> nn.Module:
  """The network of that name, as the defence needs it.

  Normalised for the data set if it is one to; computes in `dtype`.
  """
  plain = MODELS[name](num_classes, *_PIXELS[dataset])
  plain = plain.clone(dtype=jnp.dtype(dtype))
  return recipes.RECIPES[defence].module(plain, num_classes)


def described(model_dir: str | os.PathLike) -> dict[str, Any]:
  """What a trained network was made for, as `load_model` returns it.

  Raises:
    FileNotFoundError: there is no model.
    ValueError: the folder is damaged.
  """
  path = pathlib.Path(model_dir) / "model.json"
  if not path.exists():
    raise FileNotFoundError(
      f"{path} is missing: train a model with `python -m experiments.train "
      f"--workdir={model_dir}`"
    )
  try:
    info = json.loads(path.read_text())
    _module(info), tuple(info["image_shape"])
  except (LookupError, TypeError, ValueError) as error:
    raise ValueError(
      f"{path} is not as experiments.train writes it ({error!r}): train the "
      "model anew, in another folder"
    ) from error
  return info


def _module(info: Mapping[str, Any]) -> nn.Module:
  return build_model(
    info["model"],
    info["dataset"],
    info["num_classes"],
    info.get("defence", "none"),
  )


def load_model(
  model_dir: str | os.PathLike, which: str = "best"
) -> tuple[types.LogitsFn, dict[str, Any]]:
  """Loads a network that `experiments.train` has trained, or is training.

  Args:
    model_dir: Its `--workdir`.
    which: "best", by validation, or "last".

  Returns:
    The bound model and what it was made for: `dataset`, `model`, `defence`,
    `num_classes`, `image_shape`.

  Raises:
    FileNotFoundError: there is no model yet.
    ValueError: `which` is neither, or the folder is damaged.
  """
  info = described(model_dir)
  module = _module(info)
  variables = checkpoints.restore_variables(
    model_dir, module, info["image_shape"], which
  )
  return models.bind(module.apply, variables), info
