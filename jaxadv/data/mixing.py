"""Transformations of training batches, labels too: `(key, batch) -> batch`.

A batch holds "image" [B, H, W, C] and "label", int [B] or soft [B, C]. Mixing
makes soft labels of both kinds, so what attacks a mixed batch maximises the
loss of the mixed label. Label smoothing leaves the label as it is and sets
"target", which is what the loss reads in its place.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxadv import checks

Array = jax.Array
Batch = dict[str, Any]
Transform = Callable[[Array, Batch], Batch]


def mixup(num_classes: int, *, alpha: float = 1.0) -> Transform:
  """`lam x_i + (1 - lam) x_j`, and the same of the labels; j a permutation.

  One lam ~ Beta(alpha, alpha) per batch; 1 is what the authors' code takes for
  CIFAR-10.

  Reference: Zhang, Cisse, Dauphin, Lopez-Paz, "mixup: beyond empirical risk
  minimization", 2018.
  """
  checks.positive("alpha", alpha)
  return functools.partial(_mixup, num_classes, alpha)


def cutmix(
  num_classes: int, *, alpha: float = 1.0, probability: float = 1.0
) -> Transform:
  """Pastes a box of image j into image i; labels mix by its area.

  The box has sides `sqrt(1 - lam)` of the image's, lam ~ Beta(alpha, alpha),
  and a uniform centre; what leaves the image is cut off, and the labels follow
  the pixels. One box per batch. The authors paste with `probability` 0.5 on
  CIFAR-10 and 1 on ImageNet.

  Reference: Yun et al., "CutMix: regularization strategy to train strong
  classifiers with localizable features", 2019.
  """
  checks.positive("alpha", alpha)
  checks.non_negative("probability", probability)
  checks.at_most_one("probability", probability)
  return functools.partial(_cutmix, num_classes, alpha, probability)


def label_smoothing(num_classes: int, *, smoothing: float = 0.1) -> Transform:
  """Sets "target" to `(1 - smoothing) label + smoothing / num_classes`.

  0.1 is Szegedy et al.'s ("Rethinking the Inception architecture for computer
  vision", 2016).
  """
  checks.non_negative("smoothing", smoothing)
  checks.at_most_one("smoothing", smoothing)
  return functools.partial(_label_smoothing, num_classes, smoothing)


def on_images(transform: Callable[[Array, Array], Array]) -> Transform:
  """Makes `(key, images) -> images` a transformation of batches."""
  return functools.partial(_on_images, transform)


def chain(*transforms: Transform) -> Transform:
  """One after the other, with independent keys."""
  return functools.partial(_chain, transforms)


def _soft(label: Array, num_classes: int) -> Array:
  return label if label.ndim > 1 else jax.nn.one_hot(label, num_classes)


def _mixup(num_classes, alpha, key, batch) -> Batch:
  key_share, key_order = jax.random.split(key)
  share = jax.random.beta(key_share, alpha, alpha)
  images, label = batch["image"], _soft(batch["label"], num_classes)
  order = jax.random.permutation(key_order, len(images))
  return {
    **batch,
    "image": share * images + (1 - share) * images[order],
    "label": share * label + (1 - share) * label[order],
  }


def _cutmix(num_classes, alpha, probability, key, batch) -> Batch:
  key_box, key_order, key_apply = jax.random.split(key, 3)
  images, label = batch["image"], _soft(batch["label"], num_classes)
  order = jax.random.permutation(key_order, len(images))
  box = _box(key_box, alpha, *images.shape[1:3])
  box = box & jax.random.bernoulli(key_apply, probability)
  share = 1 - jnp.mean(box, dtype=images.dtype)
  return {
    **batch,
    "image": jnp.where(box[None, :, :, None], images[order], images),
    "label": share * label + (1 - share) * label[order],
  }


def _box(key: Array, alpha: float, height: int, width: int) -> Array:
  """Where to paste [height, width]."""
  key_share, key_row, key_column = jax.random.split(key, 3)
  side = jnp.sqrt(1 - jax.random.beta(key_share, alpha, alpha))

  def inside(key, length):
    centre = jax.random.randint(key, (), 0, length)
    half = jnp.floor(length * side).astype(int) // 2
    place = jnp.arange(length)
    return (place >= centre - half) & (place < centre + half)

  rows, columns = inside(key_row, height), inside(key_column, width)
  return rows[:, None] & columns[None]


def _label_smoothing(num_classes, smoothing, key, batch) -> Batch:
  del key
  label = _soft(batch["label"], num_classes)
  target = (1 - smoothing) * label + smoothing / num_classes
  return {**batch, "target": target}


def _on_images(transform, key, batch) -> Batch:
  return {**batch, "image": transform(key, batch["image"])}


def _chain(transforms, key, batch) -> Batch:
  for index, transform in enumerate(transforms):
    batch = transform(jax.random.fold_in(key, index), batch)
  return batch
