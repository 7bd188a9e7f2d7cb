"""PGD on the Jitter loss, and fresh noise for the losses of any attack."""

from typing import Any

import jax

from jaxadv import checks, criteria, losses, oracles, types
from jaxadv.attacks import ascent, gradient

Array = jax.Array
Partial = jax.tree_util.Partial


def noisy_loss(
  attack: types.Attack,
  *,
  criterion: types.Criterion = criteria.misclassified,
) -> types.Attack:
  """Gives the loss of an attack a key of its own in every step.

  Turns an attack whose y is `(y, key)` into one whose y is `y`; the key is the
  row's, new in each step. The authors' form of Jitter, to which `jitter_pgd` is
  the plain one, is

    noisy_loss(auto_pgd(ball, loss_fn=losses.jitter(),
                        criterion=criteria.misclassified_pair))

  Args:
    attack: An attack by itself, not one in rounds: put `restarts` around this.
    criterion: Success, of `(logits, y)`; the attack's own is of `(y, key)`.
  """
  checks.attack(attack)
  return attack._replace(
    init=Partial(_init, attack.init),
    step=Partial(_step, attack.step),
    threat=attack.threat._replace(criterion=types.hashable(criterion)),
  )


def jitter_pgd(
  ball: types.Ball,
  *,
  num_steps: int = 100,
  step_size: types.Scalar,
  scale: float = 10.0,
  noise: float = 0.1,
  start: ascent.Start = ascent.in_ball,
  criterion: types.Criterion = criteria.misclassified,
  bounds: ascent.Bounds = (0.0, 1.0),
) -> types.Attack:
  """PGD on the Jitter loss: scaled logits, and noise in the output.

  `pgd` on `losses.jitter(scale, noise)`, see there, with new noise in each
  step. 100 steps are the authors'.

  Args:
    ball: The perturbation set.
    num_steps: Gradients per row.
    step_size: A length in the ball's norm.
    scale: The largest magnitude among the scaled logits.
    noise: The standard deviation of the noise.
    start: The first perturbation.
    criterion: When a row stops.
    bounds: The range of inputs.

  Raises:
    TypeError: `num_steps` is not an integer.
    ValueError: `num_steps` is below 1, `scale` is not positive, `step_size` or
      `noise` is negative, or the bounds are not a range.

  Reference: Schwinn, Raab, Nguyen, Zanca, Eskofier, "Exploring
  misclassifications of robust neural networks to enhance adversarial attacks",
  2021.
  """
  attack = gradient.pgd(
    ball,
    num_steps=num_steps,
    step_size=step_size,
    start=start,
    loss_fn=losses.jitter(scale=scale, noise=noise),
    criterion=Partial(_of_label, types.hashable(criterion)),
    bounds=bounds,
  )
  return noisy_loss(attack, criterion=criterion)


def _init(init, keys, x, y) -> Any:
  return init(keys, x, (y, keys))


def _step(step, logits_fn, state) -> Any:
  y, _ = state.y
  fresh = oracles.own_keys(state.keys, state.step)
  return step(logits_fn, state._replace(y=(y, fresh)))


def _of_label(criterion, logits: Array, y: tuple[Array, Array]) -> Array:
  return criterion(logits, y[0])
