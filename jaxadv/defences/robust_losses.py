"""Robust losses of the literature, each of ONE example.

`training.standard` and `training.madry` are the plain ones. Where a paper
divides a sum by the batch size, `train_step` takes the mean over the batch,
which is the same. `y` is an int label, or soft labels [C] where cross-entropy
alone reads it.
"""

import functools

import jax
import jax.numpy as jnp

from jaxadv import checks, losses
from jaxadv.defences import training

Array = jax.Array


def mixture(alpha: float = 0.5) -> training.RobustLoss:
  """`alpha CE(z, y) + (1 - alpha) CE(z', y)`, z' the adversarial logits.

  With FGSM the first adversarial training; alpha is 0.5 there.

  Reference: Goodfellow, Shlens, Szegedy, "Explaining and harnessing adversarial
  examples", 2015.
  """
  _check_share("alpha", alpha)
  return _pair(_mixture, alpha)


def trades(beta: float = 6.0) -> training.RobustLoss:
  """`CE(z, y) + beta KL(softmax(z) || softmax(z'))`.

  The gradient flows through both arguments of the divergence, as in the
  reference code. Goes with `adversaries.trades` and `training.predictions`.
  `beta` is 6 for CIFAR-10 there and 1 for MNIST.

  Reference: Zhang et al., "Theoretically principled trade-off between
  robustness and accuracy", 2019.
  """
  checks.non_negative("beta", beta)
  return _pair(_trades, beta)


def mart(beta: float = 6.0) -> training.RobustLoss:
  """`BCE(z', y) + beta KL(p || p') (1 - p_y)`: clean mistakes weigh more.

  `BCE = CE(z', y) - log(1.0001 - max_{j != y} p'_j)`, with p and p' the clean
  and the adversarial probabilities. Constants and `beta` are the reference
  code's. Goes with `adversaries.mart`. Labels must be integers.

  Reference: Wang et al., "Improving adversarial robustness requires revisiting
  misclassified examples", 2020.
  """
  checks.non_negative("beta", beta)
  return _pair(_mart, beta)


def logit_pairing(
  weight: float = 0.5, alpha: float = 0.5
) -> training.RobustLoss:
  """Adversarial logit pairing: `mixture(alpha) + weight mean_c (z - z')^2`.

  Clean and adversarial inputs weigh the same, and the mean is over classes, as
  in the authors' code; 0.5 is the weight in that of Mosbach et al. (see
  `logit_squeezing`), for Tiny ImageNet. It masks gradients (Engstrom et al.,
  "Evaluating and understanding the robustness of adversarial logit pairing",
  2018): evaluate it with many steps and restarts.

  Reference: Kannan, Kurakin, Goodfellow, "Adversarial logit pairing", 2018.
  """
  checks.non_negative("weight", weight)
  _check_share("alpha", alpha)
  return _pair(_logit_pairing, weight, alpha)


def logit_squeezing(weight: float = 0.5) -> training.RobustLoss:
  """`CE(z, y) + weight ||z||_2` on clean inputs, without any attack.

  The paper adds Gaussian noise to the inputs (`augment.gaussian_noise`). The
  norm is not squared, and 0.5 is for MNIST, as in the code of Mosbach et al.,
  "Logit pairing methods can fool gradient-based attacks" (2018), who show that
  it masks gradients.

  Reference: Kannan, Kurakin, Goodfellow, "Adversarial logit pairing", 2018.
  """
  checks.non_negative("weight", weight)
  loss_fn = functools.partial(_logit_squeezing, weight)
  return training.RobustLoss(loss_fn, clean=True, adversarial=False)


def adp(alpha: float = 2.0, beta: float = 0.5) -> training.RobustLoss:
  """Adaptive diversity promoting training of an ensemble of K members.

  `sum_k CE(z_k, y) - alpha H(mean_k p_k) - beta log det(M M^T + 1e-6 I)`, where
  row k of M is p_k without the entry of the label, scaled to length 1: the
  volume that the members' wrong predictions span. It reads the logits of the
  members [K, C] (`ensembles.Ensemble` in training), and clean inputs alone.
  2 and 0.5 are those of the authors' commands, for three members, as are the
  offsets. Labels must be integers.

  Reference: Pang et al., "Improving adversarial robustness via promoting
  ensemble diversity", 2019.
  """
  checks.non_negative("alpha", alpha)
  checks.non_negative("beta", beta)
  loss_fn = functools.partial(_adp, alpha, beta)
  return training.RobustLoss(loss_fn, clean=True, adversarial=False)


def _pair(loss_fn, *numbers: float) -> training.RobustLoss:
  return training.RobustLoss(
    functools.partial(loss_fn, *numbers), clean=True, adversarial=True
  )


def _check_share(name: str, value: float) -> None:
  checks.non_negative(name, value)
  checks.at_most_one(name, value)


def _wide(logits: Array) -> Array:
  """Float32 at least: in half precision the offsets would vanish."""
  return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


def _mixture(alpha, clean, adv, y) -> Array:
  clean_loss = losses.cross_entropy(clean, y)
  return alpha * clean_loss + (1 - alpha) * losses.cross_entropy(adv, y)


def _divergence(logits: Array, other: Array) -> Array:
  """`KL(softmax(logits) || softmax(other))`, differentiable in both."""
  log_p, log_q = jax.nn.log_softmax(logits), jax.nn.log_softmax(other)
  return jnp.sum(jnp.exp(log_p) * (log_p - log_q))


def _trades(beta, clean, adv, y) -> Array:
  return losses.cross_entropy(clean, y) + beta * _divergence(clean, adv)


def _mart(beta, clean, adv, y) -> Array:
  label = training.integer_label(y, "mart")
  clean, adv = _wide(clean), _wide(adv)
  p, p_adv = jax.nn.softmax(clean), jax.nn.softmax(adv)
  is_label = jnp.arange(adv.shape[-1]) == label
  wrong = jnp.argmax(jnp.where(is_label, -jnp.inf, adv))
  boosted = losses.cross_entropy(adv, label) - jnp.log(
    1.0001 - p_adv[wrong] + 1e-12
  )
  log_ratio = jax.nn.log_softmax(clean) - jnp.log(p_adv + 1e-12)
  weight = 1.0000001 - p[label]
  return boosted + beta * jnp.sum(p * log_ratio) * weight


def _logit_pairing(weight, alpha, clean, adv, y) -> Array:
  distance = jnp.mean(jnp.square(clean - adv))
  return _mixture(alpha, clean, adv, y) + weight * distance


def _logit_squeezing(weight, clean, adv, y) -> Array:
  del adv
  squares = jnp.sum(jnp.square(clean))
  # The root has no gradient at zero, where networks with a last layer of zeros
  # start.
  positive = squares > 0
  norm = jnp.sqrt(jnp.where(positive, squares, 1.0)) * positive
  return losses.cross_entropy(clean, y) + weight * norm


def _adp(alpha, beta, members, adv, y) -> Array:
  del adv
  label = training.integer_label(y, "adp")
  members = _wide(members)
  fit = jnp.sum(jax.vmap(losses.cross_entropy, (0, None))(members, label))
  p = jax.nn.softmax(members)
  mean = jnp.mean(p, axis=0)
  entropy = -jnp.sum(mean * jnp.log(mean + 1e-20))
  is_label = jnp.arange(members.shape[-1]) == label
  # Unit vectors of softmax over the other classes: they never vanish.
  wrong = jax.nn.softmax(jnp.where(is_label[None], -jnp.inf, members))
  wrong = wrong / jnp.linalg.norm(wrong, axis=1, keepdims=True)
  gram = wrong @ wrong.T + 1e-6 * jnp.eye(len(members))
  return fit - alpha * entropy - beta * jnp.linalg.slogdet(gram)[1]
