import jax
import jax.numpy as jnp
import numpy as np

from jaxadv import attacks, balls
from jaxadv.defences import monitors
from tests import victims


def test_adversarial_accuracy_counts_what_survives():
  # Class 1 wins where x > 0.5; one step of 0.1 crosses from 0.45 only.
  victim = victims.binary(np.array([1.0]), -0.5)
  x = jnp.array([[0.45], [0.3], [0.2], [0.9]])
  batch = {"image": x, "label": jnp.array([0, 0, 0, 0])}
  attack = attacks.pgd(balls.Linf(0.1), num_steps=5, step_size=0.1)
  found = monitors.adversarial_accuracy(
    attack, victim, jax.random.key(0), batch
  )
  assert float(found) == 0.5


def test_collapsed():
  assert monitors.collapsed(0.4, 0.1)
  assert not monitors.collapsed(0.4, 0.25)
  assert not monitors.collapsed(0.1, 0.4)
  assert monitors.collapsed(0.4, 0.3, drop=0.05)
  assert monitors.collapsed(0.4, np.nan)
