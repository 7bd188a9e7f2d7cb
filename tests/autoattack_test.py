"""The versions are the authors' tables, for every ball and number of classes.

That the attacks are theirs is tested where the attacks are.
"""

import jax
import numpy as np
import pytest

from jaxadv import autoattack, balls, cascade, engine, judge
from jaxadv.attacks import square
from tests import golden, victims

_KEY = jax.random.key(0)
_BALLS = [balls.Linf(0.1), balls.L2(0.5), balls.L1(2.0)]
_IDS = ["linf", "l2", "l1"]


# Points that an Auto-PGD asks about: a start for each stage, and 100 steps.
_CALLS = list(zip(_BALLS, (101, 101, 103), strict=True))


def _budgets(table):
  return {name: int(attack.num_steps) for name, attack in table.items()}


# A start and 100 steps; a round of a combinator is confirmed by one step more,
# and targets are chosen by one.
@pytest.mark.parametrize("ball", _BALLS[:2], ids=_IDS[:2])
def test_standard_in_linf_and_l2(ball):
  assert _budgets(autoattack.standard(ball, 10)) == {
    "apgd_ce": 101,
    "apgd_t": 1 + 9 * (101 + 1),
    "fab_t": 100 * 9,
    "square": 5000,
  }


def test_standard_in_l1():
  """Three starts, of the stages; 5 restarts and 5 targets."""
  assert _budgets(autoattack.standard(balls.L1(12.0), 10)) == {
    "apgd_ce": 5 * (103 + 1),
    "apgd_t": 1 + 5 * (103 + 1),
    "fab_t": 100 * 9,
    "square": 5000,
  }


@pytest.mark.parametrize(("ball", "calls"), _CALLS, ids=_IDS)
def test_plus(ball, calls):
  table = autoattack.plus(ball, 10)
  assert _budgets(table) == {
    "apgd_ce": 5 * (calls + 1),
    "apgd_dlr": 5 * (calls + 1),
    "fab": 100 * 5,
    "square": 5000,
    "apgd_t": 1 + 9 * (calls + 1),
    "fab_t": 100 * 9,
  }
  # All classes, the label's included.
  assert table["fab"].backwards == 10


@pytest.mark.parametrize(("ball", "calls"), _CALLS, ids=_IDS)
def test_rand(ball, calls):
  table = autoattack.rand(ball)
  assert _budgets(table) == {"apgd_ce": calls, "apgd_dlr": calls}
  assert all(attack.backwards == 20 for attack in table.values())


def test_targets_are_at_most_the_wrong_classes():
  for num_classes in (2, 3, 4):
    rounds = num_classes - 1
    budgets = _budgets(autoattack.standard(balls.L1(2.0), num_classes))
    assert budgets["apgd_t"] == 1 + rounds * 104
    assert budgets["fab_t"] == 100 * rounds


@pytest.mark.parametrize("version", [autoattack.standard, autoattack.plus])
def test_refuses(version):
  with pytest.raises(ValueError, match="must be at least 2"):
    version(balls.L2(1.0), 1)
  for ball in (balls.L0(3.0), balls.Masked(balls.L2(1.0), np.ones((5, 5, 1)))):
    with pytest.raises(TypeError, match=r"balls\.Linf, L2 and L1, got"):
      version(ball, 10)


def test_bounds_and_radius_reach_every_attack():
  """Every number that the factories turn into a leaf is seen to change."""
  for make in (autoattack.standard, autoattack.plus):
    usual = make(balls.L2(0.5), 4)
    others = (
      make(balls.L2(0.7), 4),
      make(balls.L2(0.5), 4, bounds=(-1.0, 1.0)),
    )
    for other in others:
      for name, attack in usual.items():
        left, right = jax.tree.leaves(attack), jax.tree.leaves(other[name])
        assert len(left) == len(right) and left != right


def _shortened(table, ball=balls.Linf(0.1), num_queries=60):  # noqa: B008
  """The table without FAB, whose rounds are long, and with a short Square."""
  short = square(ball, num_queries=num_queries)
  kept = {name: table[name] for name in table if "fab" not in name}
  return kept | {"square": short} if "square" in table else kept


@pytest.mark.parametrize("num_classes", [2, 3])
def test_few_classes_are_attacked(num_classes):
  """Linear models: the closed form says which examples can be broken."""
  rng = np.random.default_rng(0)
  w = rng.normal(size=(25, num_classes)).astype(np.float32)
  b = -0.5 * w.sum(0)
  x = rng.uniform(0.2, 0.8, size=(24, 5, 5, 1)).astype(np.float32)
  logits_fn = victims.linear(w, b)
  y = (
    judge.outputs(logits_fn, _KEY, x, batch_size=24).argmax(1).astype(np.int32)
  )
  distance = victims.linear_distance(w, b, x, y, dual=1)
  ball = balls.Linf(float(np.median(distance)))
  result = cascade.cascade(
    _shortened(autoattack.standard(ball, num_classes), ball=ball),
    logits_fn,
    _KEY,
    x,
    y,
    ball=ball,
    slots=24,
    progress=False,
  )
  assert 0 < result.record.success.mean() < 1
  np.testing.assert_array_equal(result.record.success, distance <= ball.eps)
  assert any(f"{num_classes} classes" in text for text in result.suspicions)


def test_rand_breaks_a_randomised_model():
  ball = balls.Linf(0.1)
  logits_fn, (x, y) = victims.stochastic(25, 4), victims.blobs(8)
  options = {"slots": 8, "progress": False, "num_draws": 20, "ball": ball}
  steady = victims.ordinary(25, 4)
  y = victims.logits(steady, x).argmax(1).astype(np.int32)
  result = cascade.cascade(
    autoattack.rand(ball), logits_fn, _KEY, x, y, **options
  )
  clean, worst = result.robust_accuracy["clean"], result.record.success.mean()
  assert clean > 1 - worst
  # The caller knows that it is randomised.
  assert not any("randomised" in text for text in result.suspicions)


@golden.needed
@pytest.mark.slow
def test_agrees_with_the_authors_code():
  """AutoAttack on 100 images: as robust as the union of its recorded runs."""
  ball, (x, y) = balls.Linf(0.3), golden.examples(100)
  result = cascade.cascade(
    autoattack.standard(ball, 10),
    golden.net("adv"),
    _KEY,
    x,
    y,
    ball=ball,
    slots=64,
    progress=False,
  )
  runs = ("apgd-ce", "apgd-t", "fab-t", "square")
  broken = np.any(
    [
      golden.results("adv", f"autoattack-Linf-0.3-{run}")["success"][:100]
      for run in runs
    ],
    axis=0,
  )
  assert (broken == result.record.success).mean() >= 0.98
  assert result.record.success.mean() >= broken.mean() - 0.01


def test_tables_are_attacks_of_the_engine():
  """One table of another radius compiles nothing and is a pytree."""
  x, y = victims.blobs(4)
  table = autoattack.standard(balls.L2(0.5), 4)
  assert len(jax.tree.leaves(table)) > 20
  record = engine.craft(
    table["apgd_ce"], victims.trained(), _KEY, x, y, slots=4, progress=False
  )
  assert record.steps.max() <= 101
