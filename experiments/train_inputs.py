"""What a training is made of, checked before its folder is claimed.

Each function refuses by `SystemExit` with a line that names the flag.
"""

import math
import os
from collections.abc import Sequence

import numpy as np

from experiments import common, fitting, networks, parts, recipe_steps, recipes
from jaxadv import call_checks, data


def dataset(
  name: str, data_dir: str | None, num_train: int, batch_size: int
) -> data.Dataset:
  """The data set, with its first `num_train` training images; 0 for all."""
  with common.explained(f"--dataset={name}"):
    found = data.load(name, data_dir=data_dir)
  if num_train:
    with common.explained(f"--num_train={num_train}"):
      found = found._replace(train=data.first(found.train, num_train))
  with common.explained(f"--batch_size={batch_size}"):
    fitting.check_batch_size(batch_size)
  num_rows = len(found.train.labels)
  if batch_size > num_rows:
    raise SystemExit(
      f"--batch_size={batch_size} is more than the {num_rows} training images: "
      "choose a smaller one"
    )
  return found


def helpers(
  defence: str, model_dirs: Sequence[str | os.PathLike], dataset: data.Dataset
) -> parts.Helpers:
  """The trained models that the defence needs, for inputs of this data set."""
  needed = recipes.RECIPES[defence].helpers
  if len(model_dirs) < needed:
    raise SystemExit(
      f"--defence={defence} needs --helper_dirs with at least {needed} trained "
      f"model, got {list(model_dirs)}"
    )
  if model_dirs and not needed:
    raise SystemExit(
      f"--helper_dirs={','.join(map(str, model_dirs))}: --defence={defence} "
      "takes no helpers, leave it out"
    )
  return tuple(_helper(path, dataset) for path in model_dirs)


def _helper(model_dir: str | os.PathLike, dataset: data.Dataset):
  flag = f"--helper_dirs={model_dir}"
  with common.explained(flag):
    logits_fn, info = networks.load_model(model_dir)
  x = dataset.test.images[:1].astype(np.float32)
  if tuple(info["image_shape"]) != x.shape[1:]:
    raise SystemExit(
      f"{flag} is for images of {tuple(info['image_shape'])}, {dataset.name} "
      f"has {x.shape[1:]}: name a model trained on {dataset.name}"
    )
  num_classes = call_checks.model(logits_fn, x)
  if num_classes != dataset.num_classes:
    raise SystemExit(
      f"{flag} answers with {num_classes} classes, {dataset.name} has "
      f"{dataset.num_classes}: name a model of the same classes"
    )
  return logits_fn


def check(
  plan: recipe_steps.Training,
  helpers: parts.Helpers,
  model: str,
  dataset: data.Dataset,
) -> None:
  """Refuses a number that the defence cannot use, and too small images."""
  number, recipe = plan.number, recipes.RECIPES[plan.name]
  if number is not None:
    flag = f"--number={number:g}"
    if recipe.number is None:
      raise SystemExit(
        f"{flag}: --defence={plan.name} tunes none, leave it out"
      )
    flag += f", the {recipe.meaning} of {plan.name}"
    if not 0 <= number < math.inf:
      raise SystemExit(f"{flag}: must be >= 0 and finite")
    if isinstance(recipe.number, int) and number != int(number):
      raise SystemExit(f"{flag}: must be a whole number")
    with common.explained(flag):
      recipe_steps.check(plan, helpers)
  side = min(dataset.train.images.shape[1:3])
  smallest = networks.SMALLEST_SIDE.get(model, 1)
  if side < smallest:
    raise SystemExit(
      f"--model={model} needs images of at least {smallest} x {smallest}, "
      f"these have {side} x {side}: choose another model or data set"
    )
