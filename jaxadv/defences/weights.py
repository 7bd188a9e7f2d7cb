"""Perturbed weights: `(objective, key, params) -> params`.

`training.train_step` takes the gradient at the perturbed weights and applies it
to the weights as they were. (The moving average of the weights is kept by
`train_state`.)
"""

import functools

import jax
import jax.numpy as jnp

from jaxadv import checks, numerics, types
from jaxadv.defences import ensembles, training

Array = jax.Array

# Keeps a layer without gradient where it is (the reference code's own).
_TINY = 1e-20


def awp(gamma: types.Scalar = 5e-3) -> training.PerturbWeights:
  """Adversarial weight perturbation: one step up the loss, layer by layer.

  `w + gamma ||w|| g / ||g||` with g the gradient of the loss, for every array
  of at least two axes; biases and the scales of normalisation stay. Members of
  an `ensembles.Ensemble` are networks of their own. It costs
  one gradient more per step. The reference code takes gamma 5e-3 with TRADES
  after 10 epochs without, and 1e-2 with PGD from the start. Its step is that of
  SGD on a copy of the network, whose rate cancels.

  Raises:
    ValueError: `gamma` is negative.

  Reference: Wu, Xia, Wang, "Adversarial weight perturbation helps robust
  generalization", 2020.
  """
  checks.non_negative("gamma", gamma)
  return functools.partial(_awp, gamma)


def when(
  active: bool | Array, perturb_weights: training.PerturbWeights
) -> training.PerturbWeights:
  """Perturbs only where `active`; else costs nothing.

  For epochs without: `when(state.step >= warmup_steps, awp())` in the step
  function.
  """
  return functools.partial(_when, active, perturb_weights)


def _awp(gamma, objective, key, params):
  del key
  grads = jax.grad(objective)(params)

  climb = functools.partial(jax.tree.map, functools.partial(_climb, gamma))
  return ensembles.each_member(climb, params, grads)


def _climb(gamma, w: Array, g: Array) -> Array:
  if w.ndim < 2:
    return w
  length = jnp.linalg.norm(jnp.ravel(g)) + numerics.guard(_TINY, g.dtype)
  return w + gamma * (jnp.linalg.norm(jnp.ravel(w)) / length) * g


def _when(active, perturb_weights, objective, key, params):
  return jax.lax.cond(
    active,
    lambda params: perturb_weights(objective, key, params),
    lambda params: params,
    params,
  )
