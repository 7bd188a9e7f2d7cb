"""JSMA: the features of largest saliency change as far as they can.

What decides here, where other programs differ:

* The map is exact over all pairs (ART takes the two best single features), in
  memory that grows with the number of features and not with its square.
* Derivatives are those of the logits, as in the paper (JSMA-Z in Carlini and
  Wagner, 2017); a model that ends in a softmax makes it JSMA-F. They cost two
  backward passes, whatever the number of classes.
* A feature leaves the search where it can move no further, from the start on;
  until then it may be chosen again (CleverHans takes each once).
* Where no pair is salient the search has failed (CleverHans goes on with an
  arbitrary one).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxadv import checks, criteria, numerics, oracles, types

Array = jax.Array
Bounds = tuple[types.Scalar, types.Scalar]
Partial = jax.tree_util.Partial

# Pairs of this many features with all others are looked at together.
_BLOCK = 32
# Rounding must not take a change from a budget that is a whole number.
_SLACK = 1e-3


class State(NamedTuple):
  """The rows of a saliency map attack (see `types.State`)."""

  x: Array
  y: types.PyTree
  keys: Array
  step: Array
  point: Array
  x_adv: Array
  found: Array
  done: Array


class _Rule(NamedTuple):
  theta: types.Scalar
  gamma: types.Scalar
  bounds: Bounds


def jsma(
  *,
  theta: types.Scalar = 1.0,
  gamma: types.Scalar = 0.145,
  num_steps: int = 10_000,
  criterion: types.Criterion = criteria.classified_as,
  bounds: Bounds = (0.0, 1.0),
) -> types.Attack:
  """The Jacobian-based saliency map attack: targeted, two features a step.

  With `a_i = d z_t / d x_i` and `b_i = sum over j != t of d z_j / d x_i`, each
  step changes by `theta` the pair of features (p, q) that has the largest

    (a_p + a_q) * -(b_p + b_q),   both factors positive

  (for `theta < 0`, both negative), among the features that have not reached the
  bound ahead of them; the first of equals. Every channel of a pixel is a
  feature. A row ends where the criterion holds, where no pair is left or where
  `gamma` allows no further change; one without success keeps its clean input.

  A change of 1 and a share of 14.5 % are the paper's for MNIST (where the share
  counts changes, too: 56 pairs of 784 features). A step costs a forward pass
  and two backward passes, and looks at P^2 / 2 pairs of P features.

  Args:
    theta: The change of a feature: 1 sets it to the upper bound of [0, 1], -1
      to the lower one.
    gamma: The share of the features that may change.
    num_steps: Most steps per row. It binds only where `gamma` allows more than
      `num_steps - 1` pairs; the last step asks about the result.
    criterion: When to stop, of `(logits, y)`. y is the target, or `(label,
      target)` with `criteria.misclassified_pair`, as under
      `attacks.multi_targeted`.
    bounds: The range of inputs.

  Raises:
    TypeError: `num_steps` is not an integer.
    ValueError: `theta` is zero, `gamma` negative, `num_steps` below 1, or the
      bounds are not a range.

  Reference: Papernot et al., "The limitations of deep learning in adversarial
  settings", 2016.
  """
  return _attack(_best_pair, 2, theta, gamma, num_steps, criterion, bounds)


def jsma_single(
  *,
  theta: types.Scalar = 1.0,
  gamma: types.Scalar = 0.145,
  num_steps: int = 10_000,
  criterion: types.Criterion = criteria.classified_as,
  bounds: Bounds = (0.0, 1.0),
) -> types.Attack:
  """`jsma` with one feature a step: the one of largest `a_p * -b_p`.

  The saliency map that the paper starts from. It is stricter, since each
  feature alone must help the target and harm the other classes, and takes twice
  as many steps. Arguments and errors are those of `jsma`.
  """
  return _attack(_best_single, 1, theta, gamma, num_steps, criterion, bounds)


def _attack(choose, size, theta, gamma, num_steps, criterion, bounds):
  checks.num_steps(num_steps)
  checks.positive("abs(theta)", abs(theta))
  checks.non_negative("gamma", gamma)
  checks.bounds(bounds)
  return types.Attack(
    init=Partial(_init),
    step=Partial(
      _step,
      types.Static(choose),
      size,
      _Rule(theta, gamma, bounds),
      types.hashable(criterion),
    ),
    num_steps=num_steps,
    threat=types.threat(None, bounds, criterion),
    backwards=2,
  )


def _init(keys, x, y) -> State:
  rows = jnp.zeros(x.shape[0], bool)
  return State(
    x=x,
    y=y,
    keys=keys,
    step=jnp.zeros(x.shape[0], jnp.int32),
    point=x,
    x_adv=x,
    found=rows,
    done=rows,
  )


def _step(choose, size, rule: _Rule, criterion, logits_fn, state: State):
  keys = oracles.step_keys(state.keys, state.step)
  answer = oracles.gradients(
    logits_fn, _target_and_rest, keys, state.point, state.y
  )
  found = oracles.satisfied(criterion, answer.outputs, state.y)
  move = jax.vmap(_move, in_axes=(None, None, 0, 0))
  point, moved = move(choose, rule, state.point, answer.grad)
  changes = rule.gamma * state.x[0].size + _SLACK
  spent = size * (state.step + 1) > changes
  state = state._replace(
    step=state.step + 1,
    point=point,
    x_adv=oracles.choose(found, state.point, state.x_adv),
    found=found,
    done=found | spent | ~moved,
  )
  return state, answer.outputs


def _target_and_rest(logits: Array, y: types.PyTree) -> Array:
  target = logits[y[1] if isinstance(y, tuple) else y]
  return jnp.stack([target, jnp.sum(logits) - target])


def _move(choose: Callable, rule: _Rule, point: Array, grads: Array):
  """Changes the chosen features of ONE example; whether there were any."""
  low, high = rule.bounds
  flat = jnp.ravel(point)
  up = jnp.asarray(rule.theta) > 0
  free = jnp.where(up, flat < high, flat > low)
  slopes = jnp.reshape(grads, (2, -1)).astype(numerics.wide_type(grads))
  # The products of tiny derivatives would be zero.
  largest = jnp.max(jnp.abs(slopes), axis=1, keepdims=True)
  slopes = slopes / jnp.where(largest > 0, largest, 1.0)
  gain = jnp.where(up, slopes[0], -slopes[0])
  loss = jnp.where(up, -slopes[1], slopes[1])
  # A sum with what is never positive is not positive.
  gain, loss = (jnp.where(free, a, -jnp.inf) for a in (gain, loss))
  score, chosen = choose(gain, loss)
  moved = jnp.clip(flat[chosen] + rule.theta, low, high).astype(flat.dtype)
  changed = jnp.reshape(flat.at[chosen].set(moved), point.shape)
  return jnp.where(score > 0, changed, point), score > 0


def _saliency(gain: Array, loss: Array) -> Array:
  return jnp.where((gain > 0) & (loss > 0), gain * loss, 0.0)


def _best_single(gain: Array, loss: Array) -> tuple[Array, Array]:
  scores = _saliency(gain, loss)
  best = jnp.argmax(scores)
  return scores[best], best[None]


def _best_pair(gain: Array, loss: Array) -> tuple[Array, Array]:
  places = jnp.arange(gain.size)

  def best_partner(p):
    scores = _saliency(gain + gain[p], loss + loss[p])
    scores = jnp.where(places > p, scores, 0.0)
    partner = jnp.argmax(scores)
    return scores[partner], partner

  scores, partners = jax.lax.map(best_partner, places, batch_size=_BLOCK)
  p = jnp.argmax(scores)
  return scores[p], jnp.stack([p, partners[p]])
