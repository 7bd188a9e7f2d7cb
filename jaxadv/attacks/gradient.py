"""The gradient family: FGSM, its iterations, momentum and Adam.

Each is `ascent.projected_gradient` with its paper's parts. Targeted variants
are a loss and a criterion, not a switch:

  pgd(ball, ..., loss_fn=losses.targeted_cross_entropy,
      criterion=criteria.classified_as)       # y is the target

The keywords that all share: `loss_fn` (what to maximise, cross-entropy as in
the papers), `criterion` (a row stops where it holds; `criteria.never` spends
the whole budget, as adversarial training does) and `bounds` (the range of
inputs). `step_size` is a length in the ball's norm. All numbers are leaves.

Errors of all: TypeError where `ball` is none or `num_steps` is not an integer;
ValueError where `num_steps` is below 1, another number is negative (a learning
rate: not positive), or the bounds are not a range.
"""

import jax
import optax

from jaxadv import checks, criteria, losses, types
from jaxadv.attacks import ascent

Array = jax.Array
Partial = jax.tree_util.Partial


def fgsm(
  ball: types.Ball,
  *,
  loss_fn: types.LossFn = losses.cross_entropy,
  criterion: types.Criterion = criteria.misclassified,
  bounds: ascent.Bounds = (0.0, 1.0),
) -> types.Attack:
  """Fast gradient sign method: one steepest step of length eps.

  `x + eps * sign(grad L(x))` for Linf; in other balls the fast gradient method.
  Against an input that is misclassified already it returns the input.

  Reference: Goodfellow, Shlens, Szegedy, "Explaining and harnessing adversarial
  examples", 2015.
  """
  checks.ball(ball)
  return basic_iterative(
    ball,
    num_steps=1,
    step_size=ball.eps,
    loss_fn=loss_fn,
    criterion=criterion,
    bounds=bounds,
  )


def basic_iterative(
  ball: types.Ball,
  *,
  num_steps: int = 10,
  step_size: types.Scalar,
  loss_fn: types.LossFn = losses.cross_entropy,
  criterion: types.Criterion = criteria.misclassified,
  bounds: ascent.Bounds = (0.0, 1.0),
) -> types.Attack:
  """BIM, I-FGSM: steepest steps from the clean input, each projected.

  `num_steps` is 10 by default as in Foolbox and torchattacks; the paper takes
  `min(255 eps + 4, 1.25 * 255 eps)` steps of 1/255. Its iterative least-likely
  class method is the targeted form with `targets.least_likely`.

  Reference: Kurakin, Goodfellow, Bengio, "Adversarial examples in the physical
  world", 2017.
  """
  return ascent.projected_gradient(
    ball,
    _steepest_rule(ball, step_size),
    num_steps=num_steps,
    loss_fn=loss_fn,
    criterion=criterion,
    bounds=bounds,
  )


def pgd(
  ball: types.Ball,
  *,
  num_steps: int = 40,
  step_size: types.Scalar,
  start: ascent.Start = ascent.in_ball,
  loss_fn: types.LossFn = losses.cross_entropy,
  criterion: types.Criterion = criteria.misclassified,
  bounds: ascent.Bounds = (0.0, 1.0),
) -> types.Attack:
  """Projected gradient descent from a random start.

  `x <- P(x + step_size * steepest(grad L(x)))` from a uniform point of the
  ball. 40 steps are the paper's for MNIST (with eps 0.3 and step 0.01); it
  takes 7 to 20 steps of 2/255 for CIFAR-10 at 8/255.

  Reference: Madry, Makelov, Schmidt, Tsipras, Vladu, "Towards deep learning
  models resistant to adversarial attacks", 2018.
  """
  return ascent.projected_gradient(
    ball,
    _steepest_rule(ball, step_size),
    num_steps=num_steps,
    start=start,
    loss_fn=loss_fn,
    criterion=criterion,
    bounds=bounds,
  )


def r_fgsm(
  ball: types.Ball,
  *,
  random_step: types.Scalar | None = None,
  loss_fn: types.LossFn = losses.cross_entropy,
  criterion: types.Criterion = criteria.misclassified,
  bounds: ascent.Bounds = (0.0, 1.0),
) -> types.Attack:
  """R+FGSM: a random step of its own, then the rest of eps along the gradient.

  `x' = x + a * steepest(N(0, I))`, then `x' + (eps - a) * steepest(grad
  L(x'))`, with `a = random_step`, at most eps and eps / 2 by default as in the
  paper. In Linf the random step is the sign of Gaussian noise.

  Reference: Tramer et al., "Ensemble adversarial training", 2018.
  """
  checks.ball(ball)
  a = ball.eps / 2 if random_step is None else random_step
  checks.non_negative("random_step", a)
  checks.non_negative("eps - random_step", ball.eps - a)
  return ascent.projected_gradient(
    ball,
    Partial(_steepest_transform, ball, ball.eps - a),
    num_steps=1,
    start=Partial(_steepest_noise, a),
    loss_fn=loss_fn,
    criterion=criterion,
    bounds=bounds,
  )


def mi_fgsm(
  ball: types.Ball,
  *,
  num_steps: int = 10,
  step_size: types.Scalar | None = None,
  decay: types.Scalar = 1.0,
  loss_fn: types.LossFn = losses.cross_entropy,
  criterion: types.Criterion = criteria.misclassified,
  bounds: ascent.Bounds = (0.0, 1.0),
) -> types.Attack:
  """Momentum iterative FGSM.

  `g <- decay * g + grad / ||grad||_1`, `x <- P(x + step_size * steepest(g))`,
  the norm taken per example. 10 steps of eps / num_steps and decay 1 are the
  paper's.

  Reference: Dong et al., "Boosting adversarial attacks with momentum", 2018.
  """
  step_size = _step_size(ball, num_steps, step_size)
  return ascent.projected_gradient(
    ball,
    _momentum_rule(ball, step_size, decay),
    num_steps=num_steps,
    loss_fn=loss_fn,
    criterion=criterion,
    bounds=bounds,
  )


def ni_fgsm(
  ball: types.Ball,
  *,
  num_steps: int = 10,
  step_size: types.Scalar | None = None,
  decay: types.Scalar = 1.0,
  loss_fn: types.LossFn = losses.cross_entropy,
  criterion: types.Criterion = criteria.misclassified,
  bounds: ascent.Bounds = (0.0, 1.0),
) -> types.Attack:
  """Nesterov iterative FGSM: MI-FGSM with the gradient taken ahead.

  The gradient is that at `x + step_size * decay * g`. The point ahead is
  projected too (the paper leaves it free), so that where it wins it is a valid
  result. Defaults as in `mi_fgsm`.

  Reference: Lin et al., "Nesterov accelerated gradient and scale invariance for
  adversarial attacks", 2020.
  """
  step_size = _step_size(ball, num_steps, step_size)
  return ascent.projected_gradient(
    ball,
    _momentum_rule(ball, step_size, decay),
    num_steps=num_steps,
    lookahead=Partial(_ahead, step_size, decay),
    loss_fn=loss_fn,
    criterion=criterion,
    bounds=bounds,
  )


def adam_pgd(
  ball: types.Ball,
  *,
  num_steps: int = 40,
  learning_rate: types.Scalar = 0.1,
  start: ascent.Start = ascent.in_ball,
  loss_fn: types.LossFn = losses.cross_entropy,
  criterion: types.Criterion = criteria.misclassified,
  bounds: ascent.Bounds = (0.0, 1.0),
) -> types.Attack:
  """PGD whose steps are Adam's, with moments of each example's own.

  The learning rate 0.1 is where the schedules of the reference start (40 steps:
  0.1, then 0.01, then 1e-4).

  Reference: Gowal et al., "Uncovering the limits of adversarial training
  against norm-bounded adversarial examples", 2020.
  """
  checks.positive("learning_rate", learning_rate)
  return ascent.projected_gradient(
    ball,
    Partial(optax.adam, learning_rate),
    num_steps=num_steps,
    start=start,
    loss_fn=loss_fn,
    criterion=criterion,
    bounds=bounds,
  )


def _steepest_rule(ball, step_size) -> ascent.Rule:
  checks.step_size(step_size, ball)
  return Partial(_steepest_transform, ball, step_size)


def _steepest_transform(ball, step_size):
  return optax.chain(ascent.steepest(ball), optax.scale(-step_size))


def _step_size(ball, num_steps, step_size) -> types.Scalar:
  checks.ball(ball)
  checks.num_steps(num_steps)
  return ball.eps / num_steps if step_size is None else step_size


def _momentum_rule(ball, step_size, decay) -> ascent.Rule:
  checks.step_size(step_size, ball)
  checks.non_negative("decay", decay)
  return Partial(_momentum_transform, ball, step_size, decay)


def _momentum_transform(ball, step_size, decay):
  return optax.chain(
    ascent.normalise_l1(),
    optax.trace(decay),
    ascent.steepest(ball),
    optax.scale(-step_size),
  )


def _ahead(step_size, decay, opt_state) -> Array:
  # The trace holds the descent momentum, hence the minus.
  return -step_size * decay * opt_state[1].trace


def _steepest_noise(a, key, x, ball, bounds) -> Array:
  del bounds
  return a * ball.steepest(jax.random.normal(key, x.shape, x.dtype))
