"""What is attacked: a trained model and examples of a split."""

import functools
import os
import pathlib
from typing import NamedTuple

import jax
import numpy as np

from experiments import networks, recipes
from jaxadv import criteria, data, losses, types
from jaxadv.engine import fingerprints


class Victim(NamedTuple):
  """A model, and the examples [N] of a split on which it is attacked.

  `criterion` says what counts as fooled and `loss_fn` what attacks maximise for
  that, as the recipe of the model's training has it: a rejection by a null
  class, for one, is no success of the attacker.
  """

  name: str
  dataset: str
  split: str
  logits_fn: types.LogitsFn
  images: np.ndarray
  labels: np.ndarray
  class_names: tuple[str, ...]
  criterion: types.Criterion = criteria.misclassified
  loss_fn: types.LossFn = losses.cross_entropy


@functools.lru_cache(maxsize=1)
def _dataset(name: str, data_dir: str | None) -> data.Dataset:
  """Read once for all the models of a comparison."""
  return data.load(name, data_dir=data_dir)


def load(
  model_dir: str | os.PathLike,
  which: str = "best",
  *,
  dataset: str | None = None,
  data_dir: str | None = None,
  split: str = "test",
  num_examples: int = 0,
) -> Victim:
  """A trained model and the first examples of a split.

  Args:
    model_dir: The workdir of its training, whose name it takes.
    which: "best" or "last" weights.
    dataset: What to attack it on; by default what it was trained on.
    data_dir: Where data sets are.
    split: "train", "validation" or "test".
    num_examples: At most so many; 0 for all.

  Raises:
    FileNotFoundError: There is no such model, or no such data.
    ValueError: The data do not fit the model.
  """
  logits_fn, info = networks.load_model(model_dir, which)
  loaded = _dataset(dataset or info["dataset"], data_dir)
  examples = getattr(loaded, split)
  if 0 < num_examples < len(examples.labels):
    examples = data.first(examples, num_examples)
  images, labels = data.unit(examples)
  fits = (tuple(info["image_shape"]), info["num_classes"])
  has = (images.shape[1:], loaded.num_classes)
  if has != fits:
    raise ValueError(
      f"dataset={loaded.name!r} has images and classes {has}, but the model "
      f"in {str(model_dir)!r} is for {fits}: choose another data set"
    )
  recipe = recipes.RECIPES[info.get("defence", "none")]
  name = pathlib.Path(model_dir).resolve().name
  return Victim(
    name=name,
    dataset=loaded.name,
    split=split,
    logits_fn=logits_fn,
    images=images,
    labels=labels,
    class_names=loaded.class_names,
    criterion=recipe.criterion,
    loss_fn=recipe.loss_fn,
  )


def digest(victim: Victim) -> str:
  """Of weights and examples: that of others is another."""
  weights = jax.tree.leaves(victim.logits_fn)
  return fingerprints.digest(weights, victim.images, victim.labels)
