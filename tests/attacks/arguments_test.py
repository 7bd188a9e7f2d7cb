"""What every factory says to balls, norms and plans in the wrong place."""

import inspect

import optax
import pytest

from jaxadv import attacks, balls, norms

# What a factory needs beside a ball or a norm.
_NEEDED = {"optimizer": optax.sgd(0.1), "num_steps": 3, "step_size": 0.1}


def _parameters(name):
  return inspect.signature(getattr(attacks, name)).parameters


_FACTORIES = [
  name for name in attacks.__all__ if inspect.isfunction(getattr(attacks, name))
]


@pytest.mark.parametrize(
  ("noun", "other"), [("ball", 0.3), ("ball", norms.L2), ("norm", balls.L2(1))]
)
def test_factories_tell_balls_from_norms_and_radii(noun, other):
  names = [name for name in _FACTORIES if next(iter(_parameters(name))) == noun]
  assert len(names) > 5
  for name in names:
    needed = {key: _NEEDED[key] for key in _NEEDED if key in _parameters(name)}
    with pytest.raises((TypeError, ValueError), match=f"{noun} must be"):
      getattr(attacks, name)(other, **needed)


@pytest.mark.parametrize("other", [9, (9, 1000)])
def test_factories_want_a_plan(other):
  names = [name for name in _FACTORIES if "plan" in _parameters(name)]
  assert len(names) == 3
  for name in names:
    with pytest.raises(TypeError, match="plan must be a search for c such as"):
      getattr(attacks, name)(plan=other)
