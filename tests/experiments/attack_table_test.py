"""Every attack that a flag can name, and what it is told."""

import jax
import numpy as np
import pytest

from experiments import assessment, attack_table
from jaxadv import balls
from tests.experiments import assessment_cases as cases


@pytest.mark.parametrize("name", list(attack_table.ATTACKS))
def test_every_attack_understands_what_it_is_given(name, victim):
  entry = attack_table.ATTACKS[name]
  attack = entry.make(entry.balls[0](0.1), cases.PLAN.settings)
  x, labels = victim.images[:3], victim.labels[:3]
  key = jax.random.key(0)
  y = attack_table.aim(name, key, np.eye(10)[labels], labels)
  keys = jax.random.split(key, 3)
  state = jax.eval_shape(attack.init, keys, x, y)
  after, _ = jax.eval_shape(attack.step, victim.logits_fn, state)
  assert after.x_adv.shape == x.shape
  criterion = entry.criterion or attack.threat.criterion
  row = jax.tree.map(lambda leaf: leaf[0], y)
  assert criterion(np.zeros(10), row).shape == ()


_IN_LINF = [
  name
  for name, entry in attack_table.ATTACKS.items()
  if balls.Linf in entry.balls
]


def test_fab_is_not_blamed_for_what_lies_outside_of_the_ball(victim, tmp_path):
  plan = cases.PLAN._replace(
    attacks=("fab_t",),
    radii=(),
    eps=0.02,
    settings=cases.PLAN.settings._replace(num_steps=5),
  )
  attacked = assessment.assess(victim, plan, tmp_path).attacked["fab_t"]
  assert attacked.num_outside == 0
  far = attacked.record.distance["linf"] > 0.02 + 1e-6
  assert attacked.success[far].any() and not attacked.fooled[far].any()


@pytest.mark.slow
def test_every_attack_keeps_to_its_rules(victim, tmp_path):
  names = tuple(_IN_LINF)
  plan = cases.PLAN._replace(
    attacks=names, radii=(), settings=cases.PLAN.settings._replace(num_steps=20)
  )
  found = assessment.assess(victim, plan, tmp_path)
  clean = cases.predictions(victim, victim.images)
  np.testing.assert_array_equal(found.clean_wrong, clean != victim.labels)
  for name in names:
    attacked = found.attacked[name]
    x_adv = attacked.record.x_adv
    assert attacked.num_outside == 0, name
    assert x_adv.min() >= 0 and x_adv.max() <= 1, name
    if attack_table.reach(name) is attack_table.Reach.BALL:
      assert np.abs(x_adv - victim.images).max() <= 0.1 + 1e-6, name
    wrong = cases.predictions(victim, x_adv) != victim.labels
    if attack_table.reach(name) is attack_table.Reach.NEAREST:
      np.testing.assert_array_equal(attacked.success, wrong, err_msg=name)
      wrong &= np.abs(x_adv - victim.images).max(axis=(1, 2, 3)) <= 0.1 + 1e-6
    np.testing.assert_array_equal(attacked.fooled, wrong, err_msg=name)
    assert wrong[~found.clean_wrong].any(), name


@pytest.mark.parametrize(
  "name", ["targeted_pgd", "least_likely_pgd", "goal_image"]
)
def test_targets_do_not_depend_on_the_number_of_examples(name):
  logits = np.random.default_rng(0).normal(size=(50, 10))
  labels = logits.argmax(axis=-1)
  key = jax.random.key(1)
  y = attack_table.aim(name, key, logits, labels)
  few = attack_table.aim(name, key, logits[:7], labels[:7])
  np.testing.assert_array_equal(y[:7], few)
  target = y.argmax(axis=-1) if y.ndim == 2 else y
  assert np.all(target != labels)
  if name == "least_likely_pgd":
    np.testing.assert_array_equal(target, logits.argmin(axis=-1))
  else:
    assert len(np.unique(target)) == 10


@pytest.mark.parametrize(
  ("names", "problem"),
  [(["fgsm", "pgdd"], "no attack 'pgdd'"), ([], "once"), (["pgd"] * 2, "once")],
)
def test_attacks_that_cannot_be_are_refused(names, problem):
  with pytest.raises(ValueError, match=f"{problem}.*multi_targeted_pgd"):
    attack_table.check(names)


def test_attacks_for_another_norm_are_refused():
  with pytest.raises(ValueError, match="ddn is for L2 only"):
    attack_table.check(["ddn"], balls.Linf)
  attack_table.check(["ddn"], balls.L2)
