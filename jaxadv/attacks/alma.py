"""ALMA: minimum norm by an augmented Lagrangian, one for every example."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxadv import checks, criteria, losses, norms, numerics, oracles, types
from jaxadv.attacks import minimum_norm

Array = jax.Array
Partial = jax.tree_util.Partial

# adv-lib's: every so many steps rho grows by the factor, unless the constraint
# fell below the share of what it was at the last look.
_CHECK_STEPS, _GROWTH, _IMPROVED = 10, 1.2, 0.95
# The smoothing of mu, of the squares of gradients and of the momentum.
_SMOOTH = 0.9
_MU_RANGE = 1e-6, 1e12
_TINY = 1e-8
# A gradient of this length or less leads nowhere (adv-lib's).
_FLAT = 1e-6
# The first step size is at most 2 to the power of the first number as large as
# in an endless box, and known up to 2 to the power of their ratio.
_LARGEST_POWER, _HALVINGS = 30.0, 24


class State(NamedTuple):
  """The rows of an ALMA search (see `types.State`, `minimum_norm`)."""

  x: Array
  y: types.PyTree
  keys: Array
  step: Array
  point: Array
  mu: Array  # The multiplier.
  rho: Array  # The penalty parameter.
  looked: Array  # The constraint at the last look, see `_CHECK_STEPS`.
  first_win: Array  # The step of it; num_steps + 1 while there is none.
  step_size: Array  # Before the first win.
  squares: Array  # The running mean of squared gradients [B, ...].
  momentum: Array
  distance: Array
  x_adv: Array
  found: Array
  done: Array


class _Rule(NamedTuple):
  norm: norms.Norm
  num_steps: int
  step_size: types.Scalar
  last_share: types.Scalar
  first_distance: types.Scalar | None
  bounds: minimum_norm.Bounds


def alma(
  norm: norms.Norm,
  *,
  num_steps: int = 1000,
  step_size: types.Scalar = 0.1,
  last_share: types.Scalar = 0.01,
  first_distance: types.Scalar | None = None,
  loss_fn: types.LossFn = losses.dlr,
  criterion: types.Criterion = criteria.misclassified,
  bounds: minimum_norm.Bounds = (0.0, 1.0),
) -> types.Attack:
  """Augmented Lagrangian method for adversarial attacks.

  Minimises `||delta||` subject to `d <= 0`, with `d = -loss`, by descending the
  gradient of `||delta|| + P(d, rho, mu)`, of P alone in the first step; with P
  the penalty P2 of the paper:

    P = mu d + mu rho d^2 + rho^2 d^3 / 6   where d >= 0
        mu d / (1 - rho d)                  elsewhere

  The multiplier follows the slope, `mu <- 0.9 mu + 0.1 dP/dd` within
  `[1e-6, 1e12]`, from 1. Until a row's first win, rho grows from 1 by the
  factor 1.2 in every tenth step, unless d fell below 0.95 of what it was ten
  steps ago. The descent is RMSProp with momentum (both 0.9, the mean of squares
  starting at 1), its step size constant until the first win and then falling
  exponentially to `last_share` of it. All of this is per row.

  With `first_distance`, each row's step size is that at which a step down the
  first gradient, clipped to the bounds, has this norm; or half the norm of the
  farthest such step, where that is less. RMSProp divides the gradient by the
  root of 0.9 and a tenth of its squares, so the first step differs a little. A
  row whose gradient has a length of 1e-6 at most goes in a random direction.

  The nearest point that won is the result; a row without one keeps its clean
  input, and a row that wins there is done with the first step. `num_steps`
  gradients per row: the model is not asked about what the last one leads to.

  The defaults are adv-lib's, which leaves `first_distance` out, too. The paper
  tunes it for each data set (its epsilon); AttackBench has 1 for L2. adv-lib
  asks for a lead of 1e-4 where this asks the criterion.

  Args:
    norm: `norms.L2` and `norms.L1` are the paper's.
    num_steps: Gradients per row.
    step_size: Of the descent, before the first win.
    last_share: What remains of the step size at the end.
    first_distance: How far the first step goes, in the norm; it replaces
      `step_size`. None keeps `step_size`.
    loss_fn: Positive where the row is lost to the attacker. The difference of
      logits ratio is the paper's: its scale suits the first rho and mu.
    criterion: What counts as a win.
    bounds: The range of inputs.

  Raises:
    TypeError: `norm` is none or `num_steps` is not an integer.
    ValueError: `num_steps` is below 1, `step_size`, `last_share` or
      `first_distance` is not positive, or the bounds are not a range.

  Reference: Rony et al., "Augmented Lagrangian adversarial attacks", 2021.
  """
  checks.norm(norm)
  checks.num_steps(num_steps)
  checks.positive("step_size", step_size)
  checks.positive("last_share", last_share)
  if first_distance is not None:
    checks.positive("first_distance", first_distance)
  checks.bounds(bounds)
  rule = _Rule(norm, num_steps, step_size, last_share, first_distance, bounds)
  return types.Attack(
    init=Partial(_init, rule),
    step=Partial(
      _step, rule, types.hashable(loss_fn), types.hashable(criterion)
    ),
    num_steps=num_steps,
    threat=types.threat(None, bounds, criterion),
  )


def _init(rule, keys, x, y) -> State:
  ones = jnp.ones(x.shape[0], numerics.wide_type(x))
  zeros = jnp.zeros(x.shape, ones.dtype)
  return State(
    **minimum_norm.start(x),
    point=x,
    y=y,
    keys=keys,
    mu=ones,
    rho=ones,
    looked=ones,
    first_win=jnp.full(x.shape[0], rule.num_steps + 1, jnp.int32),
    step_size=jnp.full_like(ones, rule.step_size),
    squares=zeros + 1,
    momentum=zeros,
  )


def _step(
  rule, loss_fn, criterion, logits_fn, state
) -> tuple[State, types.PyTree]:
  keys = oracles.step_keys(state.keys, state.step)
  answer = oracles.loss_and_gradient(
    logits_fn, loss_fn, keys, state.point, state.y
  )
  won = oracles.satisfied(criterion, answer.outputs, state.y)
  # A loss that is not a number tells nothing.
  constraint = jnp.where(jnp.isfinite(answer.loss), -answer.loss, 0.0)
  constraint = constraint.astype(state.mu.dtype)
  state = _weigh(state, constraint)
  first = won & ~state.found
  state = state._replace(
    first_win=jnp.where(first, state.step, state.first_win)
  )
  slope = _slope(constraint, state.rho, state.mu)
  push = jax.vmap(jnp.multiply)(-slope, answer.grad.astype(slope.dtype))
  if rule.first_distance is not None:
    push, step_size = _begin(rule, state, push)
    state = state._replace(step_size=step_size)
  descend = jax.vmap(functools.partial(_descend, rule))
  point, squares, momentum = descend(state, push)
  state = minimum_norm.finish_step(state, rule.norm, won)
  state = state._replace(point=point, squares=squares, momentum=momentum)
  return state, answer.outputs


def _weigh(state: State, constraint: Array) -> State:
  """Updates rho, then mu; the first step only looks."""
  begins = state.step == 0
  looks = (state.step + 1) % _CHECK_STEPS == 0
  improved = constraint < _IMPROVED * state.looked
  raised = looks & ~begins & ~improved & ~state.found
  rho = jnp.where(raised, _GROWTH * state.rho, state.rho)
  slope = _slope(constraint, rho, state.mu)
  mu = jnp.clip(_SMOOTH * state.mu + (1 - _SMOOTH) * slope, *_MU_RANGE)
  return state._replace(
    rho=rho,
    mu=jnp.where(begins, state.mu, mu),
    looked=jnp.where(looks | begins, constraint, state.looked),
  )


def _slope(constraint: Array, rho: Array, mu: Array) -> Array:
  """The derivative of the penalty P2 in the constraint."""
  broken = jnp.maximum(constraint, 0.0)
  slack = jnp.minimum(constraint, 0.0)
  rising = mu + 2 * mu * rho * broken + jnp.square(rho * broken) / 2
  return jnp.where(constraint >= 0, rising, mu / jnp.square(1 - rho * slack))


def _begin(rule, state: State, push: Array) -> tuple[Array, Array]:
  """The push and step size of each row, chosen in its first step."""
  begins = state.step == 0

  def chosen(push):
    choose = jax.vmap(functools.partial(_first_push_and_size, rule))
    first = choose(oracles.start_keys(state.keys), state.x, push)
    return oracles.choose(begins, first, (push, state.step_size))

  def kept(push):
    return push, state.step_size

  # The search costs more than a step, and only new rows need it.
  pair: tuple[Array, Array] = jax.lax.cond(jnp.any(begins), chosen, kept, push)
  return pair


def _first_push_and_size(rule, key, x, push) -> tuple[Array, Array]:
  random = numerics.unit_l2(jax.random.normal(key, push.shape, push.dtype))
  push = jnp.where(norms.L2(push) > _FLAT, push, random)
  low, high = (bound - x.astype(push.dtype) for bound in rule.bounds)

  def distance(step_size):
    return rule.norm(jnp.clip(-step_size * push, low, high))

  end = jnp.where(push > 0, low, jnp.where(push < 0, high, 0.0))
  reach = rule.norm(end)
  target = jnp.minimum(rule.first_distance, reach / 2)
  # No smaller one does: clipping only shortens.
  least = target / rule.norm(push)

  def narrow(_, ends):
    shortest, longest = ends
    middle = (shortest + longest) / 2
    short = distance(least * 2**middle) < target
    return (
      jnp.where(short, middle, shortest),
      jnp.where(short, longest, middle),
    )

  ends = jnp.zeros_like(least), jnp.full_like(least, _LARGEST_POWER)
  power = sum(jax.lax.fori_loop(0, _HALVINGS, narrow, ends)) / 2
  step_size = jnp.where(reach > 0, least * 2**power, rule.step_size)
  return push, step_size.astype(push.dtype)


def _descend(rule, state: State, push) -> tuple[Array, Array, Array]:
  """The next point, mean of squares and momentum of ONE row."""
  delta = minimum_norm.perturbation(state)
  # Where the norm has a kink, at zero, it pulls nowhere.
  kink = (state.step == 0) | ~jnp.any(delta != 0)
  pull = jnp.where(kink, 0.0, jax.grad(rule.norm)(delta))
  grad = pull + push
  squares = _SMOOTH * state.squares + (1 - _SMOOTH) * jnp.square(grad)
  scaled = grad / (jnp.sqrt(squares) + _TINY)
  momentum = _SMOOTH * state.momentum + scaled
  since = jnp.maximum(state.step - state.first_win, 0)
  progress = since / (rule.num_steps - state.first_win)
  step_size = state.step_size * rule.last_share**progress
  moved = delta - step_size * momentum
  point = minimum_norm.inside(state.x, moved, rule.bounds)
  return point, squares, momentum
