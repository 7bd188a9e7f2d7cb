"""What every public entry checks before anything compiles.

Values are looked at only where they are concrete: inside `jit` the shapes and
types are checked and the numbers are the caller's business.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxadv import balls, types


def attack(value: Any) -> None:
  """Refuses what is no attack, such as arguments in another order."""
  if not isinstance(value, types.Attack):
    raise TypeError(
      f"attack must be made by a factory such as attacks.pgd(...), got "
      f"{type(value).__name__}: the order is attack, logits_fn, key, x, y"
    )


def num_steps(value: Any, name: str = "num_steps") -> None:
  """Refuses budgets that are not whole numbers >= 1."""
  if isinstance(value, jax.core.Tracer):
    return
  if isinstance(value, bool) or not jnp.issubdtype(
    jnp.result_type(value), jnp.integer
  ):
    raise TypeError(f"{name} must be a whole number, got {name}={value!r}")
  if value < 1:
    raise ValueError(f"{name} must be at least 1, got {name}={value!r}")


def positive(name: str, value: Any) -> None:
  """Refuses numbers that are not > 0 (so NaN, too)."""
  _compare(name, value, np.greater, ">", 0)


def non_negative(name: str, value: Any) -> None:
  """Refuses numbers that are not >= 0 (so NaN, too)."""
  _compare(name, value, np.greater_equal, ">=", 0)


def below_one(name: str, value: Any) -> None:
  """Refuses numbers that are not < 1 (so NaN, too)."""
  _compare(name, value, np.less, "<", 1)


def at_most_one(name: str, value: Any) -> None:
  """Refuses numbers that are not <= 1 (so NaN, too)."""
  _compare(name, value, np.less_equal, "<=", 1)


def key(value: Any, name: str = "key") -> None:
  """Refuses what is no single PRNG key, and keys of rbg generators.

  Mapped over rows, those draw other numbers for a row in another batch, so no
  result would be independent of batch and slots. A raw key, as of
  `jax.random.PRNGKey(0)`, is taken for one of JAX's default generator.

  Raises:
    TypeError: no key, or one of the generators "rbg" and "unsafe_rbg".
    ValueError: an array of keys.
  """
  data_type = getattr(value, "dtype", None)
  if data_type == np.uint32 and value.ndim > 0:
    try:
      value = jax.random.wrap_key_data(value)
    except TypeError as error:
      raise TypeError(
        f"{name} must be a PRNG key, got uint32 data of shape {value.shape}, "
        f"which is no key of JAX's default generator: use jax.random.key(0)"
      ) from error
  elif data_type is None or not jnp.issubdtype(data_type, jax.dtypes.prng_key):
    raise TypeError(
      f"{name} must be a PRNG key, got {name}={value!r}: use jax.random.key(0)"
    )
  if value.shape:
    raise ValueError(
      f"{name} must be one PRNG key, got an array of keys of shape "
      f"{value.shape}: take one, {name}[0]; each row gets its own from it"
    )
  generator = str(jax.random.key_impl(value))
  if generator in ("rbg", "unsafe_rbg"):
    raise TypeError(
      f"{name} must be of a generator whose draws for a row do not depend on "
      f"the batch, got a key of impl={generator!r}: use "
      f"jax.random.key(0, impl='threefry2x32')"
    )


def _compare(
  name: str, value: Any, relation: np.ufunc, sign: str, limit: int
) -> None:
  if isinstance(value, jax.core.Tracer):
    return
  if not np.all(relation(np.asarray(value), limit)):
    raise ValueError(f"{name} must be {sign} {limit}, got {name}={value!r}")


def step_size(value: Any, ball_: types.Ball) -> None:
  """Refuses lengths below zero, and zero in a ball that has room."""
  ball(ball_)
  non_negative("step_size", value)
  if not isinstance(ball_.eps, jax.core.Tracer) and np.all(
    np.asarray(ball_.eps) > 0
  ):
    positive("step_size", value)


def ball(value: Any) -> None:
  """Refuses what is no perturbation set."""
  if not hasattr(value, "project_box"):
    raise TypeError(
      f"ball must be a perturbation set such as balls.Linf(8 / 255), got "
      f"ball={value!r}"
    )


def dense_ball(value: Any, remedy: str) -> None:
  """Refuses L1 and L0, masked or not, where a step has to move every pixel."""
  ball(value)
  while isinstance(value, balls.Masked):
    value = value.ball
  if isinstance(value, balls.L1 | balls.L0):
    raise TypeError(
      f"ball must be balls.Linf or balls.L2, got ball={value!r}: {remedy}"
    )


def norm(value: Any) -> None:
  """Refuses what is no norm, balls above all."""
  if not hasattr(value, "to_hyperplane"):
    raise TypeError(
      f"norm must be norms.Linf, norms.L2 or norms.L1, got norm={value!r}: "
      f"minimum-norm attacks have no radius"
    )


def bounds(value: Any) -> None:
  """Refuses bounds that are not a pair `(low, high)` with low < high."""
  if not isinstance(value, tuple) or len(value) != 2:
    raise ValueError(f"bounds must be a pair (low, high), got bounds={value!r}")
  positive("bounds[1] - bounds[0]", value[1] - value[0])


def inputs(
  x: Any,
  within: tuple[types.Scalar, types.Scalar] | None,
  name: str = "x",
) -> None:
  """Refuses inputs that are not finite numbers inside the bounds.

  Half precision is refused: a perturbation of 8/255 has five bits of mantissa
  left next to 1, so neither the attack nor its judge could be right. Models may
  compute in half precision inside.
  """
  if not hasattr(x, "dtype") or not hasattr(x, "ndim"):
    raise TypeError(
      f"{name} must be an array, got {type(x).__name__}: convert with "
      f"np.asarray"
    )
  if not jnp.issubdtype(x.dtype, jnp.floating):
    raise TypeError(
      f"{name} must be floating point, got dtype {x.dtype}: convert images to "
      f"float32 and divide by 255"
    )
  if jnp.finfo(x.dtype).bits < 32:
    raise TypeError(
      f"{name} must be float32, got dtype {x.dtype}: convert with "
      f"{name}.astype('float32'); the model may compute in {x.dtype} itself"
    )
  if x.ndim < 2:
    raise ValueError(
      f"{name} must have a batch axis and at least one more, got shape "
      f"{x.shape}: add the batch axis with {name}[None]"
    )
  if x.shape[0] == 0:
    raise ValueError(f"{name} must hold at least one example, got none")
  if isinstance(x, jax.core.Tracer) or x.size == 0:
    return
  # NumPy, because JAX would stage the calls where this runs inside a `jit`.
  _values(np.asarray(x), within, name)


def _values(
  values: np.ndarray,
  within: tuple[types.Scalar, types.Scalar] | None,
  name: str,
) -> None:
  low, high = float(values.min()), float(values.max())
  # The extremes are NaN where any entry is.
  if not np.isfinite([low, high]).all():
    raise ValueError(
      f"{name} holds NaN or infinite values: remove those examples"
    )
  if within is None or any(isinstance(b, jax.core.Tracer) for b in within):
    return
  # As numbers of the inputs' type: 2.2 in float32 is more than 2.2.
  least, most = np.asarray(within, values.dtype)
  if low < least or high > most:
    raise ValueError(
      f"{name} must lie in bounds={within}, but spans [{low:g}, {high:g}]: "
      f"rescale the inputs; normalisation belongs inside the model"
    )


def images(x: Any, name: str = "x") -> None:
  """Refuses inputs that are not images with their channels last.

  Three dimensions of which the first alone is 1 or 3 are taken for channels
  first: read as rows, they would make an attack silently weak.
  """
  if x.ndim != 4:
    raise ValueError(
      f"{name} must hold images [B, H, W, C], got shape {x.shape}: reshape the "
      f"inputs, and back inside the model; for data that are no images leave "
      f"such an attack (square, spatial, stAdv) out"
    )
  if x.shape[1] in (1, 3) and min(x.shape[2:]) > 4:
    raise ValueError(
      f"{name} must hold images [B, H, W, C], got shape {x.shape}, which looks "
      f"like channels first: transpose with np.moveaxis({name}, 1, -1), and "
      f"back inside the model"
    )


def labels(y: Any, num_classes: int | None, name: str = "y") -> None:
  """Refuses integer labels out of range; other targets pass unseen."""
  if isinstance(y, jax.core.Tracer):
    return
  y = np.asarray(y)
  if y.ndim != 1 or y.size == 0:
    return
  if not np.issubdtype(y.dtype, np.integer):
    raise TypeError(
      f"{name} must hold integer labels, got dtype {y.dtype}: convert with "
      f"{name}.astype('int32')"
    )
  if y.min() < 0 or (num_classes is not None and y.max() >= num_classes):
    upper = "" if num_classes is None else f" and < {num_classes}"
    raise ValueError(
      f"{name} must hold labels >= 0{upper}, but spans [{y.min()}, {y.max()}]"
    )


def batch(x: Any, y: types.PyTree, names: tuple[str, str] = ("x", "y")) -> None:
  """Refuses targets whose number of rows is not that of the inputs."""
  for leaf in jax.tree.leaves(y):
    if np.ndim(leaf) == 0 or np.shape(leaf)[0] != x.shape[0]:
      raise ValueError(
        f"{names[1]} must have one row per row of {names[0]}, got shape "
        f"{np.shape(leaf)} for {x.shape[0]} inputs"
      )
