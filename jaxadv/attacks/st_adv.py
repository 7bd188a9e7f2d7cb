"""stAdv: a smooth flow of the pixels, learnt by gradient descent."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxadv import checks, criteria, losses, numerics, oracles, types
from jaxadv.attacks import warping

Array = jax.Array
Bounds = tuple[types.Scalar, types.Scalar]
Partial = jax.tree_util.Partial


class State(NamedTuple):
  """The rows of a search for a flow (see `types.State`)."""

  x: Array
  y: types.PyTree
  keys: Array
  step: Array
  flow: Array  # [B, H, W, 2], where the model is asked next.
  optimizer: optax.OptState
  best: Array  # The roughness of `x_adv`'s flow; infinite while none was found.
  x_adv: Array
  found: Array
  done: Array


def st_adv(
  max_flow: types.Scalar,
  *,
  num_steps: int = 200,
  learning_rate: types.Scalar = 0.05,
  tau: types.Scalar = 0.05,
  loss_fn: types.LossFn = losses.margin,
  criterion: types.Criterion = criteria.misclassified,
  bounds: Bounds = (0.0, 1.0),
) -> types.Attack:
  """stAdv: spatially transformed adversarial examples.

  Pixel p of the result shows what the image shows at `p + f(p)`, read by
  bilinear interpolation, beyond its edges as at them. Minimises over the flow
  f, from f = 0,

    max(-loss, 0) + tau * roughness(f)

  with `loss` the margin (the paper's, with its confidence 0) and `roughness(f)`
  the sum of `||f(p) - f(q)||` over the pixels p and their neighbours q above,
  below and beside them, so that each pair counts twice. The result is the
  winning image of least roughness among all that the model was asked about; a
  row that is won at x is done, and one without success keeps its clean image.

  The roughness counts from a row's first win on. The paper's counts at once,
  and its kink at f = 0 then holds many images still: programs that follow the
  formula start at random flows, or sum squares first, which is gentler. The
  optimiser is Adam, not the paper's L-BFGS: that needs a line search, so a
  number of gradients per step that nobody knows beforehand, and smoothness.
  `tau` is the paper's; steps, learning rate and the bound on the flow (infinity
  lifts it) are this library's own.

  Args:
    max_flow: How far a pixel may look, in pixels along either axis.
    num_steps: Gradients per row.
    learning_rate: Adam's, in pixels.
    tau: The weight of the roughness.
    loss_fn: What to maximise, positive where the attacker has won:
      `losses.targeted_margin` where y is the target, as in the paper.
    criterion: When an image counts; `criteria.classified_as` for a target.
    bounds: The range of inputs.

  Raises:
    TypeError: `num_steps` is not an integer.
    ValueError: `num_steps` is below 1, `max_flow` or `tau` is negative,
      `learning_rate` is not positive, the bounds are not a range, or the inputs
      are not images [H, W, C].

  Reference: Xiao, Zhu, Li, He, Liu, Song, "Spatially transformed adversarial
  examples", 2018.
  """
  checks.num_steps(num_steps)
  checks.non_negative("max_flow", max_flow)
  checks.positive("learning_rate", learning_rate)
  checks.non_negative("tau", tau)
  checks.bounds(bounds)
  return types.Attack(
    init=Partial(_init),
    step=Partial(
      _step,
      (max_flow, learning_rate, tau),
      bounds,
      types.hashable(loss_fn),
      types.hashable(criterion),
    ),
    num_steps=num_steps,
    threat=types.threat(None, bounds, criterion),
  )


def _init(keys, x, y) -> State:
  checks.images(x)
  flow = jnp.zeros((*x.shape[:3], 2), numerics.wide_type(x))
  rows = jnp.zeros(len(x), bool)
  return State(
    x=x,
    y=y,
    keys=keys,
    step=jnp.zeros(len(x), jnp.int32),
    flow=flow,
    # Adam's first state does not depend on its learning rate.
    optimizer=jax.vmap(optax.adam(0.0).init)(flow),
    best=jnp.full(len(x), jnp.inf, flow.dtype),
    x_adv=x,
    found=rows,
    done=rows,
  )


def _step(
  rule, bounds, loss_fn, criterion, logits_fn, state
) -> tuple[State, types.PyTree]:
  point, pull_back = jax.vjp(
    lambda flow: jax.vmap(warping.flow)(state.x, flow), state.flow
  )
  point = jnp.clip(point, *bounds)
  keys = oracles.step_keys(state.keys, state.step)
  answer = oracles.loss_and_gradient(logits_fn, loss_fn, keys, point, state.y)
  won = oracles.satisfied(criterion, answer.outputs, state.y)
  rough = jax.vmap(roughness)(state.flow)
  better = won & (rough < state.best)
  best = jnp.where(better, rough, state.best)
  (uphill,) = pull_back(answer.grad)
  descend = functools.partial(_descend, rule)
  found = state.found | won
  flow, optimizer = jax.vmap(descend)(
    state.flow, state.optimizer, found, answer.loss, uphill
  )
  state = state._replace(
    step=state.step + 1,
    flow=flow,
    optimizer=optimizer,
    best=best,
    x_adv=oracles.choose(better, point, state.x_adv),
    found=found,
    done=best == 0,
  )
  return state, answer.outputs


def _descend(rule, flow, optimizer, found, loss, uphill):
  """One step of Adam for ONE row; the next flow and the optimiser's state."""
  max_flow, learning_rate, tau = rule
  pull = jnp.where(loss > 0, 0.0, uphill)
  weight = jnp.where(found, tau, 0.0)
  grad = weight * jax.grad(roughness)(flow) - pull
  updates, optimizer = optax.adam(learning_rate).update(grad, optimizer)
  return jnp.clip(flow + updates, -max_flow, max_flow), optimizer


def roughness(flow: Array) -> Array:
  """The total variation of ONE flow [H, W, 2], each pair counted twice."""
  down = jnp.diff(flow, axis=0)
  along = jnp.diff(flow, axis=1)
  return 2 * (jnp.sum(_lengths(down)) + jnp.sum(_lengths(along)))


def _lengths(vectors: Array) -> Array:
  """Euclidean, with a gradient of zero at zero."""
  squares = jnp.sum(jnp.square(vectors), axis=-1)
  positive = squares > 0
  return jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1.0)), 0.0)
