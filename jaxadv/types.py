"""The nouns every module shares: models, losses, criteria, balls, attacks.

All of them are pytrees of pure functions. Numbers (weights, radii, step sizes)
are leaves, so one compiled program serves every new value; functions and shapes
are part of the tree's structure, so changing them compiles anew.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import numpy as np

Array = jax.Array
# A number that may be traced: a Python float, a NumPy or a JAX scalar.
Scalar = float | Array
# Any pytree; `y` is whatever the loss wants: a label, soft labels, a pair.
PyTree = Any
_Class = TypeVar("_Class", bound=type)


class LogitsFn(Protocol):
  """A model with its weights bound.

  `keys[B]` holds one PRNG key per row (deterministic models ignore them),
  `x[B, ...]` inputs in the bounds. Rows are independent: row i of the output
  depends on `keys[i]` and `x[i]` alone. Bind weights with `models.bind`, which
  makes them leaves of the function.
  """

  def __call__(self, keys: Array, x: Array) -> PyTree: ...


# ONE example: `(logits[C], y) -> []`, higher is worse for the model.
LossFn = Callable[[Array, PyTree], Array]
# ONE example: `(logits[C], y) -> bool`: has the attacker won?
Criterion = Callable[[Array, PyTree], Array]


class Ball(Protocol):
  """The set of allowed perturbations of ONE example; `eps` is a leaf."""

  @property
  def eps(self) -> Any:
    """The radius."""

  def project(self, delta: Array) -> Array:
    """The nearest perturbation inside the ball."""

  def project_box(self, delta: Array, low: Array, high: Array) -> Array:
    """A projection onto the ball and the box `low <= delta <= high`.

    `low <= 0 <= high`, elementwise: the box always holds the clean input.

    Raises:
      ValueError: it does not, seen where these are values and not traced.
    """

  def steepest(self, grad: Array) -> Array:
    """The unit-norm direction in which the linear model `grad` climbs most."""

  def sample(self, key: Array, like: Array) -> Array:
    """A perturbation drawn uniformly from the ball, shaped as `like`."""

  def norm(self, delta: Array) -> Array:
    """The size of `delta` in this ball's norm; inside means at most eps."""

  def resized(self, eps: Scalar) -> "Ball":
    """The same set with the radius eps; all else stays as it is."""


class State(Protocol):
  """What every attack's own state has in common; every leaf has B rows.

  Attributes:
    x_adv: The best point so far [B, ...].
    found: Whether the criterion held at `x_adv` when the model was last asked.
    done: Whether the row has nothing more to gain.
  """

  @property
  def x_adv(self) -> Array: ...

  @property
  def found(self) -> Array: ...

  @property
  def done(self) -> Array: ...


class Threat(NamedTuple):
  """What an attack may do and what it is after: said once, by its factory.

  Drivers and judges read it here, so that an attack and its judge cannot have
  different ideas of it.

  Attributes:
    ball: The perturbation set; None for an attack that knows no radius.
    bounds: The range of inputs.
    criterion: When the attacker has won, of the attack's own `y`.
      `criteria.never` where the attack spends its whole budget; a driver then
      has to be told what a success is.
  """

  ball: Ball | None
  bounds: tuple[Scalar, Scalar]
  criterion: Criterion


def threat(
  ball: Ball | None, bounds: tuple[Scalar, Scalar], criterion: Criterion
) -> Threat:
  """A `Threat` as part of a pytree: its criterion is made hashable."""
  return Threat(ball, bounds, hashable(criterion))


class Attack(NamedTuple):
  """A kernel: two pure functions over a batch whose rows are independent.

  Row i of every result is a function of `keys[i]`, `x[i]`, `y[i]` and the model
  alone. Drivers (`engine`) mask finished rows and count steps; kernels do
  neither.

  Attributes:
    init: `(keys[B], x[B, ...], y) -> State`; asks the model nothing.
    step: `(logits_fn, State) -> (State, outputs)`; asks the model about the
      whole batch, each row at the price below. The outputs are those at the
      point that it asked about last, one per row.
    num_steps: The most steps a row may take.
    threat: The ball, the bounds and the criterion.
    forwards: Forward passes of one step, per row.
    backwards: Backward passes of one step, per row.
  """

  init: Callable[[Array, Array, PyTree], Any]
  step: Callable[[LogitsFn, Any], tuple[Any, PyTree]]
  num_steps: int | Array
  threat: Threat
  forwards: int | Array = 1
  backwards: int | Array = 1


def pytree_dataclass(cls: _Class) -> _Class:
  """Makes a dataclass a pytree whose fields are its children.

  `jax.tree_util.register_dataclass` would not do for classes that stand in for
  one another, as balls do: to JAX (0.10 to 0.12) the structures of two such
  classes with the same fields are equal, only their hashes differ. In a hash
  table of compiled programs that is a collision now and then, and `jit` runs
  the program of an L2 attack for an Linf one.
  """
  names = tuple(field.name for field in dataclasses.fields(cls))
  jax.tree_util.register_pytree_with_keys(
    cls,
    lambda node: (
      [(jax.tree_util.GetAttrKey(n), getattr(node, n)) for n in names],
      None,
    ),
    lambda _, children: cls(*children),
  )
  return cls


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Static:
  """A function as part of a pytree's structure: hashed, never traced.

  Two trees that hold the same function share one compiled program, so pass
  functions defined at module level; a lambda made anew each time compiles anew.
  """

  fun: Callable[..., Any]

  def __call__(self, *args: Any) -> Any:
    return self.fun(*args)


def same(a: PyTree, b: PyTree) -> bool:
  """Whether two pytrees have equal structures and equal concrete leaves.

  Leaves that are traced have no value yet and count as equal.
  """
  leaves_a, tree_a = jax.tree.flatten(a)
  leaves_b, tree_b = jax.tree.flatten(b)
  same_tree: bool = tree_a == tree_b  # type: ignore[operator]
  return same_tree and all(map(_equal, leaves_a, leaves_b))


def _equal(a: Any, b: Any) -> bool:
  if isinstance(a, jax.core.Tracer) or isinstance(b, jax.core.Tracer):
    return True
  if a is b:
    return True
  a, b = np.asarray(a), np.asarray(b)
  if a.dtype.kind == b.dtype.kind == "f":
    # A radius is the same in every type that it may come in.
    a, b = a.astype(np.float32), b.astype(np.float32)
  return np.array_equal(a, b)


def hashable(fun: Callable[..., Any]) -> Callable[..., Any]:
  """Makes a plain function a pytree without leaves; pytrees pass unchanged."""
  if jax.tree_util.all_leaves([fun]):
    return Static(fun)
  return fun
