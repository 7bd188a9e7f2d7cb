"""Activation functions that serve as defences."""

import jax
import jax.numpy as jnp


def bounded_relu(x: jax.Array, bound: float = 1.0) -> jax.Array:
  """`min(max(x, 0), bound)`, elementwise.

  A large activation cannot carry a perturbation far. The gradient is 0 at and
  outside both ends. For another bound in a network, make the
  `functools.partial(bounded_relu, bound=...)` once, at module level: networks
  are equal only if their activations are.

  Args:
    x: Pre-activations of any shape.
    bound: The largest output. The default is our own (inputs are in [0, 1]).

  Reference: Zantedeschi, Nicolae and Rawat, "Efficient defenses against
  adversarial attacks" (2017), https://arxiv.org/abs/1707.06728.
  """
  limit = jnp.asarray(bound, x.dtype)
  return jax.lax.clamp(jnp.zeros_like(limit), x, limit)
