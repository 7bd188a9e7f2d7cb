"""What tests of a training share: a plan, of one of the recipes."""

from experiments import recipe_steps
from jaxadv import balls


def plan(name, **changes):
  chosen = recipe_steps.Training(
    name=name,
    ball=balls.Linf,
    eps=0.1,
    num_steps=2,
    step_size=None,
    number=None,
    num_classes=10,
    warmup_steps=3.0,
    total_steps=9,
    augment=None,
  )
  return chosen._replace(**changes)
