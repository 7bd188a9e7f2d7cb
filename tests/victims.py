"""Models whose right answers are known, all as bound pytrees.

Their functions are at module level and their numbers are leaves, so a test that
needs several victims of one kind compiles once.
"""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from jaxadv import losses, models, types

Array = jax.Array
Partial = jax.tree_util.Partial

# How often Python ran each model function: once per trace and call site.
CALLS: collections.Counter = collections.Counter()


def _flat(x: Array) -> Array:
  return x.reshape(x.shape[0], -1)


def _affine(variables, x: Array) -> Array:
  CALLS["affine"] += 1
  return _flat(x) @ variables["w"] + variables["b"][None]


def linear(w, b) -> types.LogitsFn:
  """`x . w + b` with `w` [D, C]; exact distances are known."""
  return models.bind(
    _affine, {"w": jnp.asarray(w, jnp.float32), "b": jnp.asarray(b, float)}
  )


def binary(w, b) -> types.LogitsFn:
  """Two classes; class 1 wins where `x . w + b > 0`, w [D]."""
  w = np.asarray(w, np.float32)
  return linear(np.stack([np.zeros_like(w), w], 1), [0.0, b])


def linear_distance(w, b, x, label, dual: float) -> np.ndarray:
  """The exact least perturbation that changes the label of each row [N].

  `min_j |z_y - z_j| / ||w_y - w_j||_q`, with q the `dual` of the norm.
  """
  w, x = np.asarray(w, np.float64), np.asarray(x, np.float64)
  logits = x.reshape(len(x), -1) @ w + np.asarray(b, np.float64)
  gaps = logits[np.arange(len(x)), label][:, None] - logits
  lengths = np.linalg.norm(w.T[label][:, None] - w.T[None], dual, axis=2)
  gaps[np.arange(len(x)), label] = np.inf
  lengths[np.arange(len(x)), label] = 1.0
  return (gaps / lengths).min(axis=1)


def _bowl(variables, x: Array) -> Array:
  distance = jnp.sum(jnp.square(_flat(x) - variables["centre"][None]), axis=1)
  return jnp.stack([variables["radius"] ** 2 - distance, 0 * distance], axis=1)


def bowl(centre, radius: float) -> types.LogitsFn:
  """Class 0 inside the sphere around `centre`, class 1 outside."""
  centre = jnp.ravel(jnp.asarray(centre, jnp.float32))
  return models.bind(_bowl, {"centre": centre, "radius": jnp.float32(radius)})


def _mixed(variables, keys: Array, x: Array) -> Array:
  CALLS["mixed"] += 1
  v = variables
  x = _flat(x)
  bend = jnp.sqrt(jnp.sum(jnp.square(v["bend"] * x), axis=1))
  noise = v["noise"] * _hash(keys, v["b"].size)
  return x @ v["w"] + v["b"][None] + v["lift"][None] * bend[:, None] + noise


def _hash(keys: Array, num_classes: int) -> Array:
  """Noise in [-1, 1): exact everywhere, and compiled faster than a draw."""
  words = jax.random.key_data(keys)
  factors = 2 * jnp.arange(num_classes, dtype=jnp.uint32) + 1
  hashed = (words[:, :1] ^ words[:, 1:]) * (factors * jnp.uint32(2654435761))[
    None
  ]
  return (hashed >> 8).astype(jnp.float32) / 2**23 - 1


def mixed(
  num_inputs: int,
  num_classes: int,
  *,
  seed: int = 0,
  scale: float = 1.0,
  bend: float = 0.1,
  lift: float = 0.1,
  noise: float = 0.0,
) -> types.LogitsFn:
  """An affine map with a norm bent in; a different victim for other numbers."""
  rng = np.random.default_rng(seed)
  # Every pixel matters to every class, as coordinate attacks need.
  w = rng.normal(size=(num_inputs, num_classes))
  variables = {
    "w": scale * w.astype(np.float32),
    "b": scale * (0.1 * rng.normal(size=num_classes) - 0.5 * w.sum(0)),
    "lift": lift * rng.normal(size=num_classes),
    "bend": np.asarray(bend),
    "noise": np.asarray(noise),
  }
  variables = jax.tree.map(lambda v: jnp.asarray(v, jnp.float32), variables)
  return models.bind_stochastic(_mixed, variables)


def ordinary(num_inputs: int, num_classes: int, seed: int = 0):
  return mixed(num_inputs, num_classes, seed=seed)


def constant(num_inputs: int, num_classes: int):
  """The same logits everywhere; no gradient."""
  return mixed(num_inputs, num_classes, scale=0.0, lift=0.0)


def saturated(num_inputs: int, num_classes: int):
  """Logits so far apart that cross-entropy has no gradient in float32."""
  return mixed(num_inputs, num_classes, scale=1e5, lift=0.0)


def nan_gradient(num_inputs: int, num_classes: int):
  """Finite logits whose gradient is NaN everywhere: sqrt at 0."""
  return mixed(num_inputs, num_classes, bend=0.0)


def stochastic(num_inputs: int, num_classes: int, seed: int = 0):
  """Adds noise, a hash of the key of each row, to the logits."""
  return mixed(num_inputs, num_classes, seed=seed, noise=0.5)


def _two_regions(variables, x: Array) -> Array:
  z = _flat(x)[:, :2] - 0.5
  xor = variables["scale"] * z[:, 0] * z[:, 1]
  return jnp.stack([xor, -xor], axis=1)


def two_regions(scale: float = 4.0) -> types.LogitsFn:
  """XOR: class 0 in two opposite quadrants around the grey image."""
  return models.bind(_two_regions, {"scale": jnp.float32(scale)})


@jax.custom_jvp
def _opaque(x: Array) -> Array:
  return x


@_opaque.defjvp
def _opaque_jvp(primals, tangents):
  raise AssertionError("a gradient was asked of a query-only victim")


def _query_only(variables, keys: Array, x: Array) -> Array:
  return _mixed(variables, keys, _opaque(x))


def query_only(num_inputs: int, num_classes: int) -> types.LogitsFn:
  """`ordinary`, but asking for its gradient raises."""
  return Partial(_query_only, *ordinary(num_inputs, num_classes).args)


class _TinyMLP(nn.Module):
  @nn.compact
  def __call__(self, x: Array) -> Array:
    return nn.Dense(4)(nn.tanh(nn.Dense(24)(_flat(x))))


def blobs(
  num_examples: int = 96, seed: int = 1
) -> tuple[np.ndarray, np.ndarray]:
  """Four noisy 5 x 5 patterns, [N, 5, 5, 1] in [0, 1], and their labels."""
  rng = np.random.default_rng(0)
  patterns = rng.uniform(0.25, 0.75, size=(4, 5, 5, 1))
  rng = np.random.default_rng(seed)
  labels = np.arange(num_examples) % 4
  x = patterns[labels] + 0.08 * rng.normal(size=(num_examples, 5, 5, 1))
  return np.clip(x, 0, 1).astype(np.float32), labels.astype(np.int32)


@functools.cache
def trained(num_steps: int = 60) -> types.LogitsFn:
  """A small network trained on `blobs` with a fixed seed."""
  net, optimizer = _TinyMLP(), optax.adam(0.02)
  x, y = blobs(64, seed=2)
  variables = net.init(jax.random.key(0), x[:1])

  def objective(variables):
    logits = net.apply(variables, x)
    return jnp.mean(jax.vmap(losses.cross_entropy)(logits, y))

  def descend(carry, _):
    variables, opt_state = carry
    grads = jax.grad(objective)(variables)
    updates, opt_state = optimizer.update(grads, opt_state)
    return (optax.apply_updates(variables, updates), opt_state), None

  def train(variables):
    start = variables, optimizer.init(variables)
    return jax.lax.scan(descend, start, None, num_steps)[0][0]

  return models.bind(net.apply, jax.jit(train)(variables))


def logits(logits_fn: types.LogitsFn, x) -> np.ndarray:
  """The logits of a deterministic victim, as NumPy."""
  keys = jax.random.split(jax.random.key(0), len(x))
  return np.array(logits_fn(keys, jnp.asarray(x)))


# How many rows a `counted` victim was really asked about, by any program.
ASKED: collections.Counter = collections.Counter()


def _tally(keys, x) -> None:
  del keys
  ASKED["rows"] += len(x)
  ASKED["calls"] += 1


def _counted(logits_fn, keys: Array, x: Array) -> Array:
  # Under `vmap` only a callback that is given what differs is called again.
  jax.debug.callback(_tally, jax.random.key_data(keys), x)
  return logits_fn(keys, x)


def counted(logits_fn: types.LogitsFn) -> types.LogitsFn:
  """The same model; adds the rows of every run to `ASKED`."""
  return Partial(_counted, logits_fn)


def asked() -> collections.Counter:
  """`ASKED` so far, once all programs have run."""
  jax.effects_barrier()
  return ASKED.copy()
