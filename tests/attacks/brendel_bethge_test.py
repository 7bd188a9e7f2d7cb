"""Brendel-Bethge against closed forms, stage by stage."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import attacks, criteria, engine, losses, models, norms, projections
from jaxadv.attacks.brendel_bethge import brendel_bethge
from tests import golden, victims

KEY = jax.random.key(0)
WIDE = (-5.0, 5.0)
NORMS = pytest.mark.parametrize(
  ("norm", "name", "dual"),
  [(norms.L2, "l2", 2), (norms.Linf, "linf", 1)],
  ids=["l2", "linf"],
)


def _problem(num_classes, num_inputs=8):
  rng = np.random.default_rng(0)
  w = rng.normal(size=(num_inputs, num_classes))
  b = 0.1 * rng.normal(size=num_classes)
  x = rng.normal(size=(6, num_inputs)).astype(np.float32)
  return w, b, x, np.argmax(x @ w + b, axis=1).astype(np.int32)


def _craft(attack, logits_fn, x, y, bounds=WIDE, **options):
  return engine.craft(attack, logits_fn, KEY, x, y, progress=False, **options)


@NORMS
@pytest.mark.parametrize("start", [attacks.at_input, attacks.in_bounds])
def test_finds_the_distance_of_a_linear_model(norm, name, dual, start):
  w, b, x, label = _problem(2)
  attack = brendel_bethge(
    norm, num_steps=300, learning_rate=1e-2, start=start, bounds=WIDE
  )
  record = _craft(attack, victims.linear(w, b), x, label)
  assert record.success.all()
  exact = victims.linear_distance(w, b, x, label, dual)
  np.testing.assert_allclose(record.distance[name], exact, rtol=0.01)
  np.testing.assert_array_equal(record.backwards, 300)


@NORMS
def test_finds_the_nearest_point_of_the_boundary_it_walks(norm, name, dual):
  """Of three classes the boundary to one is met first, mostly the nearest."""
  w, b, x, label = _problem(3)
  attack = brendel_bethge(norm, num_steps=300, bounds=WIDE)
  record = _craft(attack, victims.linear(w, b), x, label)
  assert record.success.all()
  exact = np.zeros(len(x))
  for i, z in enumerate(record.x_adv @ w + b):
    # On the boundary the label ties with the other class.
    z[label[i]] = -np.inf
    pair = [label[i], np.argmax(z)]
    exact[i] = victims.linear_distance(
      w[:, pair], b[pair], x[i : i + 1], np.zeros(1, int), dual
    )[0]
  np.testing.assert_allclose(record.distance[name], exact, rtol=0.01)
  least = victims.linear_distance(w, b, x, label, dual)
  assert (record.distance[name] <= 1.01 * least).mean() > 0.8


@NORMS
def test_finds_the_distance_inside_the_bounds(norm, name, dual):
  """Coordinates at a bound are held there; others make up for them."""
  rng = np.random.default_rng(1)
  w = rng.normal(size=8)
  x = rng.choice([0.02, 0.98, 0.5], size=(6, 8)).astype(np.float32)
  for i, lead in enumerate(np.linspace(-0.6, -1.6, 6)):
    row, b = x[i], lead - x[i] @ w
    logits_fn = victims.binary(w, b)
    delta = getattr(projections, name)(
      jnp.asarray(row), jnp.asarray(w), jnp.asarray(-lead), (0.0, 1.0)
    )
    attack = brendel_bethge(norm, num_steps=400, learning_rate=2e-2)
    label = np.zeros(1, np.int32)
    record = _craft(attack, logits_fn, row[None], label, (0.0, 1.0))
    np.testing.assert_allclose(record.distance[name][0], norm(delta), rtol=0.01)


def test_targeted_it_ends_in_the_target():
  w, b, x, label = _problem(3)
  target = np.argmin(x @ w + b, axis=1).astype(np.int32)
  attack = brendel_bethge(
    norms.L2,
    num_steps=300,
    loss_fn=losses.targeted_margin,
    criterion=criteria.classified_as,
    bounds=WIDE,
  )
  record = _craft(
    attack, victims.linear(w, b), x, target, criterion=criteria.classified_as
  )
  assert record.success.all() and (target != label).all()


def _states(attack, logits_fn, x, y):
  keys = jax.random.split(KEY, len(x))
  state = attack.init(keys, jnp.asarray(x, jnp.float32), jnp.asarray(y))
  step = jax.jit(attack.step)
  yield state
  for _ in range(attack.num_steps):
    state, _ = step(logits_fn, state)
    yield state


def test_the_stages_follow_each_other():
  """One coordinate, the boundary at 1: all questions are known."""
  logits_fn = victims.binary([1.0], -1.0)
  x = np.zeros((1, 1))
  attack = brendel_bethge(
    norms.L2, num_steps=40, learning_rate=0.01, bounds=(-8.0, 8.0),
    start=lambda key, x, ball, bounds: jnp.full(1, 3.0),
  )  # fmt: skip
  states = list(_states(attack, logits_fn, x, [0]))
  points = [float(state.point[0, 0]) for state in states]
  # The input, the start, and ten halvings of the way between them.
  expected, lost, won = [0.0, 3.0], 0.0, 1.0
  for _ in range(10):
    middle = (lost + won) / 2
    expected.append(3 * middle)
    lost, won = (lost, middle) if 3 * middle > 1 else (middle, won)
  expected.append(3 * won)
  np.testing.assert_allclose(points[:13], expected, rtol=1e-6)
  stages = [int(state.way.stage[0]) for state in states]
  assert stages[:14] == [-1, -1, *range(12)]
  # From a winning point it returns nine tenths of the way to the boundary.
  lead = expected[-1] - 1
  assert lead > 0
  np.testing.assert_allclose(points[13], 1 + 0.1 * lead, rtol=1e-6)
  assert 1 <= states[-1].distance[0] <= 1 + 1e-5


def test_without_a_start_it_moves_twice_as_far_as_the_boundary_seems_to_be():
  logits_fn = victims.binary([1.0], -1.0)
  attack = brendel_bethge(norms.L2, num_steps=2, bounds=(-8.0, 8.0))
  *_, state = _states(attack._replace(num_steps=1), logits_fn, [[0.0]], [0])
  np.testing.assert_allclose(state.point, [[2.0]], rtol=1e-4)


def test_a_win_within_rounding_of_the_boundary_is_none():
  attack = brendel_bethge(norms.L2, num_steps=1, bounds=(-8.0, 8.0))
  near, far = 1 + 2e-6, 1 + 2e-5
  # Against logits of this size the nearer one leads by 2e-6, less than 1e-5.
  logits_fn = victims.linear([[0.0, 1.0]], [1.0, 0.0])
  *_, state = _states(attack, logits_fn, [[near], [far]], [0, 0])
  np.testing.assert_array_equal(state.found, [False, True])


def test_the_trust_region_bounds_steps_and_is_halved_twenty_times():
  """A circle to walk around: the radius binds at every step."""
  logits_fn = victims.bowl([0.0, 0.0], 1.0)
  x = np.asarray([[0.0, -0.5]])
  attack = brendel_bethge(
    norms.L2, num_steps=100, learning_rate=0.01, momentum=0.0,
    start=lambda key, x, ball, bounds: jnp.asarray([2.0, 2.0]),
    bounds=(-5.0, 5.0),
  )  # fmt: skip
  states = list(_states(attack, logits_fn, x, [0]))
  points = np.asarray([state.point[0] for state in states])
  walked = np.linalg.norm(np.diff(points, axis=0), axis=1)
  first = next(i for i, s in enumerate(states) if s.way.stage[0] == 10)
  moves = np.arange(len(walked) - first)
  radius = 0.01 * 2 * 10 * 0.5 ** ((moves + 2) // 5)
  assert (walked[first:] <= radius * 1.001 + 1e-6).all()
  assert (walked[first : first + 5] >= 0.95 * radius[:5]).all()


def _steps(variables, x):
  lead = jnp.sign(x[:, 0] - variables)
  return jnp.stack([-lead, lead], axis=1)


def test_without_gradients_noise_finds_the_start():
  logits_fn = models.bind(_steps, jnp.float32(0.6))
  x = np.full((4, 3), 0.1, np.float32)
  attack = brendel_bethge(norms.L2, num_steps=40)
  record = _craft(attack, logits_fn, x, np.zeros(4, int), (0.0, 1.0))
  assert record.success.all()
  # The halvings end at the boundary, wherever the noise was.
  np.testing.assert_allclose(record.x_adv[:, 0], 0.6, atol=2e-3)
  assert np.ptp(record.x_adv[:, 1]) > 0.01


@NORMS
def test_without_a_start_the_clean_input_is_kept(norm, name, dual):
  del name, dual
  logits_fn = victims.linear(np.zeros((4, 2)), [1.0, 0.0])
  x = np.full((2, 4), 0.5, np.float32)
  attack = brendel_bethge(norm, num_steps=20)
  *_, state = _states(attack, logits_fn, x, [0, 0])
  np.testing.assert_array_equal(state.x_adv, x)
  assert not state.found.any() and not state.done.any()


def test_an_input_that_is_wrong_already_is_its_own_result():
  w, b, x, label = _problem(3)
  attack = brendel_bethge(norms.L2, bounds=WIDE)
  record = _craft(attack, victims.linear(w, b), x, (label + 1) % 3)
  np.testing.assert_array_equal(record.x_adv, x)
  np.testing.assert_array_equal(record.steps, 1)


@golden.needed
@pytest.mark.slow
@pytest.mark.parametrize("name", ["nat", "adv"])
def test_in_linf_it_is_as_near_as_fmn_recorded(name):
  """FMN with as many gradients, row by row."""
  x, labels = golden.examples(30)
  attack = brendel_bethge(norms.Linf)
  record = engine.craft(
    attack, golden.net(name), KEY, x, labels, slots=30, progress=False
  )
  recorded = golden.results(name, "fmn-linf-1000")["linf"][:30]
  assert record.success.all()
  assert (record.distance["linf"] <= 1.02 * recorded).mean() >= 0.9


@pytest.mark.parametrize(
  "options",
  [
    {"num_steps": 0},
    {"learning_rate": 0.0},
    {"momentum": -0.1},
    {"momentum": 1.0},
    {"bounds": (1.0, 0.0)},
  ],
)
def test_refuses_senseless_options(options):
  with pytest.raises(ValueError, match=next(iter(options))):
    brendel_bethge(norms.L2, **options)


def test_refuses_other_norms():
  with pytest.raises(ValueError, match="norm must be"):
    brendel_bethge(norms.L1)
