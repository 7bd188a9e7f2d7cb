"""Auto-PGD against NumPy re-derivations of its papers, step for step."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import attacks, balls, criteria, engine, losses
from jaxadv.attacks.auto_pgd import auto_pgd
from jaxadv.attacks.auto_pgd_l1 import auto_pgd_l1
from tests import victims
from tests.attacks import auto_pgd_cases as cases

LOSSES = {
  "cross_entropy": (losses.cross_entropy, cases.cross_entropy),
  "margin": (losses.margin, cases.margin),
}


@pytest.mark.parametrize(
  ("ball", "rules", "name"),
  [
    (balls.Linf(0.15), cases.LinfRules(0.15), "cross_entropy"),
    (balls.Linf(0.15), cases.LinfRules(0.15), "margin"),
    (balls.L2(0.7), cases.L2Rules(0.7), "cross_entropy"),
  ],
)
@pytest.mark.parametrize("n", [7, 60])
def test_every_point_is_the_derived_one(ball, rules, name, n):
  loss_fn, loss = LOSSES[name]
  attack = auto_pgd(
    ball, num_steps=n, loss_fn=loss_fn, criterion=criteria.never
  )
  with jax.enable_x64(True):
    final, trace = cases.states(attack, np.float64)
  assert trace.point.shape[0] == n + 1
  # The start is compared with nothing.
  assert (trace.rises[1] == 0).all()
  halvings = 0
  x, y = cases.examples()
  for row in range(cases.BATCH):
    start = trace.point[0, row]
    expected = cases.derive(rules, start, x[row], y[row], loss, n, 0.75)
    np.testing.assert_allclose(trace.point[:, row], expected.points, atol=1e-9)
    np.testing.assert_array_equal(
      trace.step_size[1:, row], np.float64(expected.step_sizes)
    )
    np.testing.assert_allclose(final.x_adv[row], expected.best, atol=1e-9)
    np.testing.assert_allclose(final.best_loss[row], expected.best_loss)
    halvings += len(set(expected.step_sizes)) - 1
  assert halvings > 0


def _points(loss_name, first_against):
  x, y = cases.examples()
  attack = auto_pgd(balls.Linf(0.15), num_steps=60, criterion=criteria.never)
  with jax.enable_x64(True):
    start = cases.states(attack, np.float64)[1].point[0]
  loss = LOSSES[loss_name][1]
  return [
    cases.derive(
      cases.LinfRules(0.15), start[i], x[i], y[i], loss, 60, 0.75, first_against
    ).points
    for i in range(cases.BATCH)
  ]


def test_first_period_counts_as_the_reference_does_for_positive_losses():
  # Its comparison with the zeros at the end of a list is won by every positive
  # loss, and a first step of 2 eps beats a random start.
  for paper, wrapped in zip(
    _points("cross_entropy", None), _points("cross_entropy", 0.0), strict=True
  ):
    np.testing.assert_array_equal(paper, wrapped)


def test_first_period_follows_the_paper_for_negative_losses():
  # Had the wrap-around been kept, some rows of the margin's trajectories, which
  # equal the paper's above, would be others.
  wrapped = _points("margin", 0.0)
  paper = _points("margin", None)
  assert any((a != b).any() for a, b in zip(paper, wrapped, strict=True))


@pytest.mark.parametrize(
  ("n", "expected"),
  [
    (100, [22, 41, 57, 70, 80, 87, 93, 99]),
    (10, list(range(2, 11))),
    (5, [1, 2, 3, 4, 5]),
    (1, [1]),
    (400, cases.checkpoints(400)),
    (37, cases.checkpoints(37)),
  ],
)
def test_checkpoints(n, expected):
  attack = auto_pgd(balls.Linf(0.1), num_steps=n, criterion=criteria.never)
  _, trace = cases.states(attack)
  due = sorted(set(trace.checkpoint[:, 0].tolist()))
  assert [step for step in due if step <= n] == expected == cases.checkpoints(n)


def test_integer_truncations_are_those_of_the_floats():
  for n in range(1, 3000):
    assert 22 * n // 100 == int(0.22 * n) and 3 * n // 100 == int(0.03 * n)
    assert 6 * n // 100 == int(0.06 * n) and 4 * n // 100 == int(0.04 * n)
    assert -(-3 * n // 10) == math.ceil(0.3 * n)


@pytest.mark.parametrize(
  ("ball", "eps"),
  [
    (balls.Linf, 0.1),
    (balls.L2, 0.3),
  ],
)
def test_starts_on_the_surface_with_steps_of_two_eps(ball, eps):
  attack = auto_pgd(ball(eps))
  keys = jax.random.split(jax.random.key(0), 64)
  grey = jnp.full((64, cases.SIZE), 0.5)
  start = cases.init(attack, keys, grey, jnp.zeros(64, jnp.int32))
  sizes = jax.vmap(ball(eps).norm)(start.point - grey)
  np.testing.assert_allclose(sizes, eps, rtol=1e-5)
  np.testing.assert_allclose(start.step_size, 2 * eps)
  assert abs(np.mean(start.point - grey)) < 0.1 * eps


ATTACKS = {
  "linf": lambda **parts: auto_pgd(balls.Linf(0.15), num_steps=20, **parts),
  "l2": lambda **parts: auto_pgd(balls.L2(0.7), num_steps=20, **parts),
  "l1": lambda **parts: auto_pgd_l1(1.2, num_steps=20, **parts),
}


def _loss(point, label):
  return cases.oracle(point, label, cases.cross_entropy)[0]


@pytest.mark.parametrize("name", ATTACKS)
def test_returns_the_point_of_highest_loss(name):
  attack = ATTACKS[name](criterion=criteria.never)
  final, trace = cases.states(attack)
  assert not final.found.any() and not final.done.any()
  _, y = cases.examples()
  stage = trace.stage if name == "l1" else np.full(trace.step.shape, 2)
  for row in range(cases.BATCH):
    points = trace.point[stage[:, row] == 2, row].astype(np.float64)
    values = [_loss(point, y[row]) for point in points]
    reached = _loss(final.x_adv[row].astype(np.float64), y[row])
    np.testing.assert_allclose(reached, max(values), rtol=1e-5)
  falls = np.diff(trace.best_loss, axis=0) < 0
  assert not falls[np.diff(stage, axis=0) == 0].any()


@pytest.mark.parametrize("name", ATTACKS)
def test_stops_at_the_first_success_inside_the_ball(name):
  attack = ATTACKS[name]()
  _, trace = cases.states(attack)
  _, y = cases.examples()
  w = cases.weights()
  logits = np.tanh(trace.point @ w["first"]) @ w["second"]
  fooled = logits.argmax(-1) != y[None]
  if name == "l1":
    fooled &= trace.stage == 2
  # The state after step i says whether its point won.
  np.testing.assert_array_equal(trace.found[1:], fooled[:-1])
  np.testing.assert_array_equal(trace.done[1:], fooled[:-1])
  np.testing.assert_array_equal(
    trace.x_adv[1:][fooled[:-1]], trace.point[:-1][fooled[:-1]]
  )
  assert fooled.any()


@pytest.mark.parametrize(("name", "extra"), [("linf", 1), ("l2", 1), ("l1", 3)])
def test_oracle_calls(name, extra):
  attack = ATTACKS[name]()
  assert attack.num_steps == 20 + extra
  assert (attack.forwards, attack.backwards) == (1, 1)


def test_targeted_reaches_the_target():
  w = np.random.default_rng(2).normal(size=(cases.SIZE, 3))
  logits_fn = victims.linear(w, np.zeros(3))
  x = np.full((3, cases.SIZE), 0.5, np.float32)
  target = np.arange(3, dtype=np.int32)
  attack = auto_pgd(
    balls.Linf(0.4),
    num_steps=10,
    loss_fn=losses.targeted_cross_entropy,
    criterion=criteria.classified_as,
  )
  x_adv = engine.run(attack, logits_fn, jax.random.key(0), x, target)
  np.testing.assert_array_equal(
    victims.logits(logits_fn, x_adv).argmax(1), target
  )


def _composed(attack):
  return attacks.eot(
    attacks.multi_targeted(
      attacks.restarts(
        attack,
        1,
        loss_fn=losses.targeted_dlr,
        criterion=criteria.misclassified_pair,
      ),
      2,
    ),
    2,
  )


def test_targeted_dlr_composes():
  attack = _composed(
    ATTACKS["linf"](
      loss_fn=losses.targeted_dlr, criterion=criteria.misclassified_pair
    )
  )
  assert attack.num_steps == 1 + 2 * (21 + 1 + 1)
  assert (attack.forwards, attack.backwards) == (2, 2)
  logits_fn = victims.stochastic(cases.SIZE, cases.CLASSES)
  x = np.random.default_rng(3).uniform(size=(6, cases.SIZE)).astype(np.float32)
  y = victims.logits(victims.ordinary(cases.SIZE, cases.CLASSES), x).argmax(1)
  y = y.astype(np.int32)
  x_adv = engine.run(attack, logits_fn, jax.random.key(0), x, y)
  assert np.abs(x_adv - x).max() <= 0.15 + 1e-6
  fooled = victims.logits(logits_fn, x_adv).argmax(1) != y
  assert fooled.mean() > 0.5


@pytest.mark.parametrize("name", ["linf", "l1"])
def test_dlr_of_two_classes_is_the_margin(name):
  logits_fn = victims.binary(np.ones(cases.SIZE), -0.55 * cases.SIZE)
  x = np.full((2, cases.SIZE), 0.5, np.float32)
  y = np.zeros(2, np.int32)
  attack = ATTACKS[name](loss_fn=losses.dlr)
  x_adv = engine.run(attack, logits_fn, jax.random.key(0), x, y)
  assert (victims.logits(logits_fn, x_adv).argmax(1) == 1).all()


def test_new_numbers_do_not_change_the_program():
  same = jax.tree.structure
  assert same(auto_pgd(balls.L2(0.1))) == same(
    auto_pgd(balls.L2(0.2), num_steps=7, rho=0.5)
  )
  assert same(auto_pgd_l1(0.1)) == same(auto_pgd_l1(0.2, num_steps=7))


def test_bad_arguments_are_refused():
  with pytest.raises(ValueError, match="num_steps"):
    auto_pgd(balls.Linf(0.1), num_steps=0)
  with pytest.raises(TypeError, match="num_steps"):
    auto_pgd_l1(1.0, num_steps=1.5)
  with pytest.raises(ValueError, match="rho"):
    auto_pgd(balls.Linf(0.1), rho=-0.1)
  with pytest.raises(ValueError, match="bounds"):
    auto_pgd_l1(1.0, bounds=(1.0, 0.0))
  with pytest.raises(ValueError, match="eps"):
    auto_pgd_l1(-1.0)
