"""The networks that benchmarks attack, with images for them.

The small ones take 28 x 28 grey images. Without files they are trained on the
8 x 8 digits of scikit-learn, enlarged: nothing is downloaded. Others are those
of `experiments.train`.
"""

import functools
import pathlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from experiments import networks
from experiments import victims as trained
from jaxadv import attacks, balls, criteria, data, engine, judge, models

KINDS = ("undefended", "hardened")
_SIDE = 28
# How PyTorch builds a network: see `peer_network`.
_TWO_CONV = ("conv 1 2 2", "conv 1 2 2", "dense", "dense")
_LAYERS = {
  "small_cnn": (
    *("conv 0 0 1", "conv 0 0 1", "pool"),
    *("conv 0 0 1", "conv 0 0 1", "pool"),
    *("dense", "dense", "dense"),
  ),
  "strided_cnn": ("conv 1 1 2", "conv 1 1 2", "dense", "dense"),
  "mlp": ("dense", "dense", "dense"),
  "preact_resnet18": ("preact_resnet",),
}


class Net(NamedTuple):
  """A network and its images; `layers` say how PyTorch builds it.

  None where it cannot. `mean` and `std` are of the pixels, for networks that
  normalise them.
  """

  name: str
  logits_fn: Any
  x: np.ndarray
  label: np.ndarray
  layers: tuple[str, ...] | None
  mean: tuple[float, ...] = ()
  std: tuple[float, ...] = ()


def small_nets(
  nets: str | None, data_dir: str | None, num_examples: int, eps: float
) -> list[Net]:
  """The two small networks (see `variables`) and their images."""
  x, label = images(data_dir, num_examples)
  return [
    Net(kind, bind(weights), x, label, _TWO_CONV)
    for kind, weights in variables(nets, eps).items()
  ]


def trained_nets(
  model_dirs: Iterable[str], data_dir: str | None, num_examples: int
) -> list[Net]:
  """Networks of `experiments.train`, with images of their test sets."""
  return [_trained(folder, data_dir, num_examples) for folder in model_dirs]


def _trained(folder: str, data_dir: str | None, num_examples: int) -> Net:
  found = trained.load(folder, data_dir=data_dir, num_examples=num_examples)
  info = networks.described(folder)
  module = networks.build_model(
    info["model"], info["dataset"], info["num_classes"]
  )
  return Net(
    found.name,
    found.logits_fn,
    found.images,
    found.labels,
    _LAYERS.get(info["model"]),
    tuple(getattr(module, "mean", ())),
    tuple(getattr(module, "std", ())),
  )


def job(net: Net) -> dict[str, np.ndarray]:
  """What `peer_network` builds the network of: arrays of an `.npz` file.

  Raises:
    ValueError: it has no copy in PyTorch.
  """
  if net.layers is None:
    raise ValueError(f"network {net.name!r} has no copy in PyTorch")
  paths = jax.tree_util.tree_leaves_with_path(net.logits_fn.args[0])
  arrays = {
    "/".join(key.key for key in path): np.asarray(leaf) for path, leaf in paths
  }
  logits = judge.outputs(
    net.logits_fn, jax.random.key(0), net.x, batch_size=len(net.x)
  )
  return arrays | {
    "layers": np.asarray(net.layers),
    "x": net.x,
    "label": net.label,
    "logits": np.asarray(logits),
    "mean": np.asarray(net.mean),
    "std": np.asarray(net.std),
  }


class TwoConvNet(nn.Module):
  """Two 5 x 5 convolutions of stride 2 (16, 32) and 100 hidden units."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Logits [B, 10] of `x` [B, 28, 28, 1]."""
    for features in (16, 32):
      x = nn.Conv(
        features,
        (5, 5),
        strides=2,
        conv_general_dilated=models.conv_general_dilated,
      )(x)
      x = nn.relu(x)
    x = nn.relu(nn.Dense(100)(x.reshape(len(x), -1)))
    return nn.Dense(10)(x)


def bind(variables: Any) -> Any:
  """The network with these weights, as attacks take it."""
  return models.bind(TwoConvNet().apply, variables)


def images(
  data_dir: str | None, num_examples: int
) -> tuple[np.ndarray, np.ndarray]:
  """The first test images [N, 28, 28, 1] in [0, 1] and their labels.

  Of MNIST if `data_dir` holds it, else of the enlarged digits (358 at most).
  """
  test = _dataset(data_dir).test
  x, label = data.unit(data.first(test, min(num_examples, len(test.labels))))
  return _enlarged(x), label


def variables(nets: str | None, eps: float) -> dict[str, Any]:
  """The weights of an undefended and of a hardened network.

  Args:
    nets: An `.npz` file of `{nat,adv}/params/{layer}/{kernel,bias}` in flax's
      layout; None trains both on the digits.
    eps: The Linf radius that the hardened network is trained for.
  """
  if nets is not None:
    names = zip(KINDS, ("nat", "adv"), strict=True)
    return {kind: _read(pathlib.Path(nets), name) for kind, name in names}
  x, label = data.unit(data.load("digits").train)
  x = _enlarged(x)
  start = TwoConvNet().init(jax.random.key(0), x[:1])
  undefended = _train(start, x, label, None, num_steps=150)
  # A hardened network learns nothing from scratch within a few steps.
  attack = attacks.pgd(
    balls.Linf(eps),
    num_steps=4,
    step_size=eps / 2,
    criterion=criteria.never,
  )
  hardened = _train(undefended, x, label, attack, num_steps=150)
  return dict(zip(KINDS, (undefended, hardened), strict=True))


def _dataset(data_dir: str | None) -> data.Dataset:
  if data_dir is None:
    return data.load("digits")
  return data.load("mnist", data_dir=data_dir)


def _enlarged(x: np.ndarray) -> np.ndarray:
  """Images of 28 x 28: pixels repeated three times, then a margin."""
  if x.shape[1] == _SIDE:
    return x
  x = x.repeat(3, axis=1).repeat(3, axis=2)
  margin = (_SIDE - x.shape[1]) // 2
  return np.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))


def _read(path: pathlib.Path, name: str) -> Any:
  params: dict[str, dict[str, jax.Array]] = {}
  with np.load(path) as file:
    for key in file.files:
      net, _, layer, leaf = key.split("/")
      if net == name:
        params.setdefault(layer, {})[leaf] = jnp.asarray(file[key])
  if not params:
    raise ValueError(f"nets={str(path)!r} holds no network named {name!r}")
  return {"params": params}


def _train(variables, x, label, attack, num_steps: int) -> Any:
  optimizer = optax.adam(2e-3)
  opt_state = optimizer.init(variables)
  rng = np.random.default_rng(0)
  for step in range(num_steps):
    rows = rng.integers(0, len(x), 128)
    variables, opt_state = _update(
      optimizer,
      attack,
      variables,
      opt_state,
      jax.random.key(step),
      x[rows],
      label[rows],
    )
  return variables


@functools.partial(jax.jit, static_argnums=0)
def _update(optimizer, attack, variables, opt_state, key, x, label):
  if attack is not None:
    x = engine.run(attack, bind(variables), key, x, label)

  def objective(variables):
    logits = TwoConvNet().apply(variables, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()

  grads = jax.grad(objective)(variables)
  updates, opt_state = optimizer.update(grads, opt_state)
  return optax.apply_updates(variables, updates), opt_state
