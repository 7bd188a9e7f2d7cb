"""Terms of the training loss that need input gradients or pairs of inputs.

Each factory returns a `training.Regulariser`, `(view, key, x, label) -> []`,
with its weight in it. They ask the training view, so with batch normalisation
its statistics are those of the inputs asked about (the authors of CURE ask the
evaluation view). Where a gradient is regularised, training differentiates
twice, in reverse mode both times (`models.convolution` has no forward mode).

Squeezing and pairing logits and flat losses mask gradients: show such networks
to attacks of many steps and restarts before believing a number.
"""

import functools

import jax
import jax.numpy as jnp

from jaxadv import checks, losses, numerics, types
from jaxadv.defences import training

Array = jax.Array


def clean_logit_pairing(weight: float = 0.5) -> training.Regulariser:
  """`weight mean (z_i - z_j)^2` over pairs of clean inputs and over classes.

  Input i of the first half of the batch is paired with input i of the second,
  whatever their labels; of an odd batch the last is left out. The paper adds
  Gaussian noise to the inputs (`augment.gaussian_noise`). 0.5 is the weight in
  the code of Mosbach et al. (2018), for Tiny ImageNet.

  Reference: Kannan, Kurakin, Goodfellow, "Adversarial logit pairing", 2018.
  """
  checks.non_negative("weight", weight)
  return functools.partial(_clean_logit_pairing, weight)


def input_gradient(weight: float) -> training.Regulariser:
  """Double backpropagation: `weight mean_i ||grad_x CE(z_i, y_i)||_2^2`.

  References: Drucker, LeCun, "Improving generalization performance using double
  backpropagation", 1992; Ross, Doshi-Velez, "Improving the adversarial
  robustness and interpretability of deep neural networks by regularizing their
  input gradients", 2018.
  """
  checks.non_negative("weight", weight)
  return functools.partial(_input_gradient, weight)


def jacobian(
  weight: float = 0.01, num_projections: int = 1
) -> training.Regulariser:
  """`weight / 2 mean_i ||J_i||_F^2`, J the Jacobian of the logits.

  Estimated without bias by `C ||v J||^2` with random unit vectors v, one
  backward pass for each of `num_projections`. Both defaults are the authors'.

  Reference: Hoffman, Roberts, Yaida, "Robust learning with Jacobian
  regularization", 2019.
  """
  checks.non_negative("weight", weight)
  checks.num_steps(num_projections, "num_projections")
  return functools.partial(_jacobian, weight, num_projections)


def curvature(weight: float = 4.0, h: float = 0.6) -> training.Regulariser:
  """CURE: `weight mean_i ||grad L(x_i + h z_i) - grad L(x_i)||_2^2`.

  L is the cross-entropy, z the sign of its gradient, scaled to length 1 and not
  differentiated through. `h` is a length in units of the inputs, which may
  leave the bounds. 0.6 is the 3 of the authors' code for CIFAR-10, whose inputs
  are divided by 0.2; it moves each of the 3,072 numbers by 2.8/255. (Their
  example lets it grow over five epochs, from 0.1 to 3.) A weight of 4 is the
  default of that code, which has the length where this has its square, and the
  loss of the batch where this has those of its rows: tune it.

  Reference: Moosavi-Dezfooli, Fawzi, Uesato, Frossard, "Robustness via
  curvature regularization, and vice versa", 2019.
  """
  checks.non_negative("weight", weight)
  checks.non_negative("h", h)
  return functools.partial(_curvature, weight, h)


def virtual_adversarial(
  eps: float, weight: float = 1.0, num_power_steps: int = 1
) -> training.Regulariser:
  """VAT: `weight mean_i KL(p(x_i) || p(x_i + eps d_i))`, d the worst direction.

  d is the leading eigenvector of the divergence's Hessian at x, by power
  iteration from a random direction. The Hessian times a vector is exact here;
  the paper takes a finite difference. The clean prediction is a constant. Needs
  no labels.

  Args:
    eps: Euclidean length of the perturbation, in units of the inputs.
    weight: 1 in the paper.
    num_power_steps: 1 in the paper.

  Reference: Miyato, Maeda, Koyama, Ishii, "Virtual adversarial training: a
  regularization method for supervised and semi-supervised learning", 2018.
  """
  checks.positive("eps", eps)
  checks.non_negative("weight", weight)
  checks.num_steps(num_power_steps, "num_power_steps")
  return functools.partial(_virtual_adversarial, eps, weight, num_power_steps)


def gradient_alignment(
  ball: types.Ball, weight: float = 0.2
) -> training.Regulariser:
  """GradAlign: `weight mean_i (1 - cos(grad L(x_i), grad L(x_i + u_i)))`.

  u is uniform in the ball and the gradient at x a constant, as in the reference
  code; rows where either gradient vanishes are left out. Keeps training with
  `attacks.fgsm` from overfitting catastrophically. 0.2 is the paper's weight
  for 8/255 on CIFAR-10, 2.0 for 16/255.

  Reference: Andriushchenko, Flammarion, "Understanding and improving fast
  adversarial training", 2020.
  """
  checks.non_negative("weight", weight)
  return functools.partial(_gradient_alignment, ball, weight)


def _clean_logit_pairing(weight, view, key, x, label) -> Array:
  del key, label
  half = len(x) // 2
  if not half:
    raise ValueError(f"clean_logit_pairing needs two inputs, got {len(x)}")
  logits = view(x)
  return weight * jnp.mean(jnp.square(logits[:half] - logits[half : 2 * half]))


def _gradient(view, x: Array, label: Array) -> Array:
  """The gradient of each row's cross-entropy."""

  def total(x):
    return jnp.sum(jax.vmap(losses.cross_entropy)(view(x), label))

  return jax.grad(total)(x)


def _mean_square(rows: Array) -> Array:
  """The mean over rows of their squared length."""
  return jnp.sum(jnp.square(rows)) / len(rows)


def _input_gradient(weight, view, key, x, label) -> Array:
  del key
  return weight * _mean_square(_gradient(view, x, label))


def _jacobian(weight, num_projections, view, key, x, label) -> Array:
  del label
  logits, pull_back = jax.vjp(view, x)
  shape = (num_projections, *logits.shape)
  v = jax.random.normal(key, shape, logits.dtype)
  v = v / jnp.linalg.norm(v, axis=-1, keepdims=True)
  squares = jax.vmap(lambda v: _mean_square(pull_back(v)[0]))(v)
  return 0.5 * weight * logits.shape[-1] * jnp.mean(squares)


def _curvature(weight, h, view, key, x, label) -> Array:
  del key
  here = _gradient(view, x, label)
  z = jax.vmap(numerics.unit_l2)(jnp.sign(jax.lax.stop_gradient(here)))
  return weight * _mean_square(_gradient(view, x + h * z, label) - here)


def _virtual_adversarial(
  eps, weight, num_power_steps, view, key, x, label
) -> Array:
  del label
  p = jax.nn.softmax(jax.lax.stop_gradient(view(x)))

  def total(r):
    return jnp.sum(jax.vmap(losses.kl_divergence)(view(x + r), p))

  d = jax.random.normal(key, x.shape, x.dtype)
  for _ in range(num_power_steps):
    d = jax.vmap(numerics.unit_l2)(d)
    slope = lambda r, d=d: jnp.sum(jax.grad(total)(r) * d)
    d = jax.lax.stop_gradient(jax.grad(slope)(jnp.zeros_like(x)))
  return weight * total(eps * jax.vmap(numerics.unit_l2)(d)) / len(x)


def _gradient_alignment(ball, weight, view, key, x, label) -> Array:
  u = jax.vmap(ball.sample)(jax.random.split(key, len(x)), x)
  here, some = _unit(jax.lax.stop_gradient(_gradient(view, x, label)))
  there, others = _unit(_gradient(view, x + u, label))
  rows = some & others
  distance = jnp.where(rows, 1 - jnp.sum(here * there, axis=1), 0.0)
  return weight * jnp.sum(distance) / jnp.maximum(jnp.sum(rows), 1)


def _unit(grads: Array) -> tuple[Array, Array]:
  """Flat rows of length 1, and which of them were not zero."""
  flat = grads.reshape(len(grads), -1)
  some = jnp.any(flat != 0, axis=1)
  # A length has no derivative at zero: such rows are replaced before, too.
  return jax.vmap(numerics.unit_l2)(jnp.where(some[:, None], flat, 1.0)), some
