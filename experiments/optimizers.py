"""The optimisers and schedules that `--optimizer` and `--schedule` can name.

They are what adversarial training uses, so momentum is plain: in the code of
Madry et al. (2018), TRADES, MART, AWP, Fast and Rice et al. (2020) alike.
Nesterov's has a name of its own, for WideResNets and CutMix, whose authors take
it.
"""

import functools
from collections.abc import Callable

import optax


def _cyclic(
  share: float, learning_rate: float, num_steps: int
) -> optax.Schedule:
  """Up from zero for a share of the steps, then down to zero."""
  top = max(1, int(share * num_steps))
  rise = optax.linear_schedule(0.0, learning_rate, top)
  fall = optax.linear_schedule(learning_rate, 0.0, max(1, num_steps - top))
  return optax.join_schedules([rise, fall], [top])


# Name -> `(learning_rate, num_steps)` -> schedule. piecewise: a tenth after
# half and again after three quarters (Rice et al., 2020). Wong et al. (2020)
# write of a cyclic rate, up from zero and down to it; the top is after two
# fifths of the steps in their code for MNIST (cyclic; so have Rice et al.) and
# in the middle in that for CIFAR-10 (triangular, as Smith, 2017, calls it),
# where PyTorch's CyclicLR moves the momentum too, from 0.9 to 0.8 and back.
# This keeps it.
SCHEDULES: dict[str, Callable[[float, int], optax.Schedule]] = {
  "constant": lambda rate, num_steps: optax.constant_schedule(rate),
  "cosine": optax.cosine_decay_schedule,
  "piecewise": lambda rate, num_steps: optax.piecewise_constant_schedule(
    rate, {num_steps // 2: 0.1, 3 * num_steps // 4: 0.1}
  ),
  "cyclic": functools.partial(_cyclic, 2 / 5),
  "triangular": functools.partial(_cyclic, 1 / 2),
}


def _sgd(schedule, momentum, weight_decay, nesterov=False):
  return optax.chain(
    optax.add_decayed_weights(weight_decay),
    optax.sgd(schedule, momentum=momentum or None, nesterov=nesterov),
  )


def _adam(schedule, momentum, weight_decay):
  return optax.chain(
    optax.add_decayed_weights(weight_decay), optax.adam(schedule, b1=momentum)
  )


# Name -> `(schedule, momentum, weight_decay)` -> optimiser. Weight decay is on
# every weight; in sgd, nesterov and adam it joins the gradient as in PyTorch,
# in adamw it is decoupled.
OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
  "sgd": _sgd,
  "nesterov": functools.partial(_sgd, nesterov=True),
  "adam": _adam,
  "adamw": lambda schedule, momentum, weight_decay: optax.adamw(
    schedule, b1=momentum, weight_decay=weight_decay
  ),
}


def optimizer(
  name: str,
  learning_rate: optax.Schedule,
  *,
  momentum: float,
  weight_decay: float,
  accumulate: int,
) -> optax.GradientTransformation:
  """The optimiser of that name, which moves every `accumulate` steps."""
  every = OPTIMIZERS[name](learning_rate, momentum, weight_decay)
  if accumulate == 1:
    return every
  return optax.MultiSteps(every, accumulate).gradient_transformation()
