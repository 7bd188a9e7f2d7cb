"""The attacks of training: weaker than those of evaluation, and on a budget.

Each is an attack of `jaxadv.attacks` with the parts of its paper and
`criteria.never`, so that every row spends its whole budget: a row that is
misclassified already is where training learns most.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxadv import attacks, checks, criteria, losses, oracles, types
from jaxadv.attacks import ascent

Array = jax.Array
Partial = jax.tree_util.Partial


def pgd(
  ball: types.Ball,
  *,
  num_steps: int = 10,
  step_size: types.Scalar,
  bounds: ascent.Bounds = (0.0, 1.0),
) -> types.Attack:
  """Cross-entropy from a uniform point of the ball (Madry et al., 2018).

  The paper trains with 7 steps of 2/255 on CIFAR-10 (8/255) and with 40 of 0.01
  on MNIST (0.3).
  """
  return attacks.pgd(
    ball,
    num_steps=num_steps,
    step_size=step_size,
    criterion=criteria.never,
    bounds=bounds,
  )


def trades(
  ball: types.Ball,
  *,
  num_steps: int = 10,
  step_size: types.Scalar,
  noise: types.Scalar = 0.001,
  bounds: ascent.Bounds = (0.0, 1.0),
) -> types.Attack:
  """Drives the prediction away from that of the clean input (TRADES).

  Maximises `KL(p || softmax(z))`, where `y` is p: the probabilities of the
  clean input, as `training.predictions` makes them. That divergence has no
  gradient at the clean input, so it starts at `x + noise * N(0, I)`. The paper
  takes 10 steps of 0.007 on CIFAR-10 and 40 of 0.01 on MNIST.

  Reference: Zhang et al., "Theoretically principled trade-off between
  robustness and accuracy", 2019.
  """
  return attacks.pgd(
    ball,
    num_steps=num_steps,
    step_size=step_size,
    start=_near(noise),
    loss_fn=losses.kl_divergence,
    criterion=criteria.never,
    bounds=bounds,
  )


def mart(
  ball: types.Ball,
  *,
  num_steps: int = 10,
  step_size: types.Scalar,
  noise: types.Scalar = 0.001,
  bounds: ascent.Bounds = (0.0, 1.0),
) -> types.Attack:
  """Cross-entropy from `x + noise * N(0, I)`, as the code of MART has it.

  There 10 steps of 0.007 for a radius of 0.031 on CIFAR-10.

  Reference: Wang et al., "Improving adversarial robustness requires revisiting
  misclassified examples", 2020.
  """
  return attacks.pgd(
    ball,
    num_steps=num_steps,
    step_size=step_size,
    start=_near(noise),
    criterion=criteria.never,
    bounds=bounds,
  )


def rs_fgsm(
  ball: types.Ball,
  *,
  step_size: types.Scalar | None = None,
  bounds: ascent.Bounds = (0.0, 1.0),
) -> types.Attack:
  """One step from a uniform point of the ball: "fast" adversarial training.

  `step_size` is 1.25 eps by default as in the paper; longer ones overfit
  catastrophically, so watch `monitors.adversarial_accuracy`. Only the result
  lies in the bounds: the gradient is taken where the draw leads, as in the
  authors' code for MNIST. There most pixels are at a bound, and training with
  starts that are moved back into the bounds may collapse (`docs/defences.md`).
  Their code for CIFAR-10, where few pixels are, moves them back.

  Reference: Wong, Rice and Kolter, "Fast is better than free: revisiting
  adversarial training", 2020.
  """
  step_size = 1.25 * ball.eps if step_size is None else step_size
  attack = pgd(ball, num_steps=1, step_size=step_size, bounds=bounds)
  return attack._replace(init=Partial(_beyond_bounds, ball, attack.init))


def _beyond_bounds(ball, init, keys, x, y) -> ascent.State:
  draw = jax.vmap(ball.sample)(oracles.start_keys(keys), x)
  return init(keys, x, y)._replace(x_adv=x + draw)


def n_fgsm(
  ball: types.Ball,
  *,
  noise: types.Scalar = 2.0,
  step_size: types.Scalar | None = None,
  bounds: ascent.Bounds = (0.0, 1.0),
) -> types.Attack:
  """One step from noise that is larger than the ball, and no projection.

  The start is uniform in the ball of `noise * eps`, the step `step_size` long,
  eps by default; only the bounds clip. So the result lies within `noise * eps +
  step_size`, on purpose outside of the ball: this is no attack to evaluate
  with. Noise of 2 eps and a step of eps are the paper's.

  Args:
    ball: An `Linf` (the paper's), `L2` or `L1` ball, or one of them masked.
    noise: Radius of the start, in units of eps.
    step_size: Length of the step, in the units of eps.
    bounds: The range of inputs.

  Reference: de Jorge et al., "Make some noise: reliable and efficient
  single-step adversarial training", 2022.
  """
  checks.non_negative("noise", noise)
  step_size = ball.eps if step_size is None else step_size
  attack = attacks.pgd(
    ball.resized(noise * ball.eps + step_size),
    num_steps=1,
    step_size=step_size,
    start=Partial(_uniform, ball.resized(noise * ball.eps)),
    criterion=criteria.never,
    bounds=bounds,
  )
  # It does not keep to the ball, so it has none.
  return attack._replace(threat=attack.threat._replace(ball=None))


def _uniform(inner, key, x, ball, bounds) -> Array:
  del ball, bounds
  return inner.sample(key, x)


def _near(noise: types.Scalar) -> ascent.Start:
  checks.non_negative("noise", noise)
  return Partial(_gaussian, noise)


def _gaussian(noise, key, x, ball, bounds) -> Array:
  del ball, bounds
  return noise * jax.random.normal(key, x.shape, x.dtype)


class FriendlyState(NamedTuple):
  """The rows of an attack that is stopped early (see `types.State`)."""

  inner: Any
  y: types.PyTree
  patience: Array  # Steps a row may still go beyond a misclassified point.
  found: Array
  done: Array

  @property
  def x_adv(self) -> Array:
    """The point of the wrapped attack."""
    return self.inner.x_adv


def friendly(
  attack: types.Attack,
  tau: int | Array = 0,
  *,
  criterion: types.Criterion = criteria.misclassified,
) -> types.Attack:
  """Stops each row `tau` steps after its point is first misclassified (FAT).

  A row is done where its point is misclassified and that has happened `tau`
  times before; else it goes on. In the authors' code `tau` grows during
  training, from 0 to 2, with TRADES to 3. As rows end early, a step costs fewer
  gradients.

  Args:
    attack: Asks at its own point and never stops, as those of this module.
    tau: Misclassified points a row may leave behind; may be traced.
    criterion: What counts as misclassified, of the attack's `y`.

  Raises:
    ValueError: `tau` is negative.

  Reference: Zhang et al., "Attacks which do not kill training make adversarial
  learning stronger", 2020.
  """
  checks.attack(attack)
  checks.non_negative("tau", tau)
  return attack._replace(
    init=Partial(_init_friendly, attack, tau),
    step=Partial(_step_friendly, attack, types.hashable(criterion)),
  )


def _init_friendly(attack, tau, keys, x, y) -> FriendlyState:
  rows = jnp.zeros(len(x), bool)
  return FriendlyState(
    inner=attack.init(keys, x, y),
    y=y,
    patience=jnp.full(len(x), tau, jnp.int32),
    found=rows,
    done=rows,
  )


def _step_friendly(attack, criterion, logits_fn, state):
  moved, outputs = attack.step(logits_fn, state.inner)
  wrong = oracles.satisfied(criterion, outputs, state.y)
  stop = wrong & (state.patience <= 0)
  inner = oracles.choose(stop, state.inner, moved)
  # Where `rs_fgsm` asks at its start, that is no result yet.
  x_adv = jnp.clip(inner.x_adv, *attack.threat.bounds)
  state = state._replace(
    inner=inner._replace(x_adv=x_adv.astype(inner.x_adv.dtype)),
    patience=state.patience - wrong,
    found=wrong,
    done=stop,
  )
  return state, outputs


def from_source(
  attack: types.Attack,
  sources: Sequence[types.LogitsFn],
  index: int | Array,
) -> types.Attack:
  """Crafts on another model: ensemble adversarial training.

  Source 0 is the model that is trained, source i the i-th of `sources`, whose
  weights stay as they are. The paper draws one source for each batch: draw
  `index` in the step function, `jax.random.randint(key, (), 0, 1 +
  len(sources))`. Only the chosen source is run.

  Args:
    attack: What to run on the source, FGSM or `attacks.r_fgsm` in the paper.
    sources: Trained models, of any architectures with the same classes.
    index: Which source; may be traced.

  Reference: Tramer et al., "Ensemble adversarial training: attacks and
  defenses", 2018.
  """
  return attack._replace(
    step=Partial(_step_on_source, attack, tuple(sources), index)
  )


def _step_on_source(attack, sources, index, logits_fn, state):
  def step_on(model):
    return lambda state: attack.step(model, state)

  branches = [step_on(model) for model in (logits_fn, *sources)]
  return jax.lax.switch(index, branches, state)
