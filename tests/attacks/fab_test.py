"""FAB against closed forms, its bookkeeping and the traps it has had."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import engine, norms, oracles
from jaxadv.attacks.fab import fab, fab_t

KEY = jax.random.key(0)
NORMS = {"linf": norms.Linf, "l2": norms.L2, "l1": norms.L1}


def linear(w, b, keys, x):
  del keys
  return (x - 0.5) @ w + b[None]


@jax.tree_util.Partial
def curved(keys, x):
  del keys
  r = jnp.sum(jnp.square(x - 0.3), axis=1)
  return jnp.stack([0 * r + 0.2, r, jnp.sin(5 * x[:, 0]) - 0.9], axis=1)


def victim(num_classes, seed=0):
  rng = np.random.default_rng(seed)
  w = jnp.asarray(rng.normal(size=(6, num_classes)), jnp.float32)
  b = jnp.asarray(rng.normal(size=num_classes) * 0.1, jnp.float32)
  x = rng.random((6, 6))
  # Some coordinates have no room on one side.
  x[rng.random(x.shape) < 0.3] = 0.0
  x = jnp.asarray(x, jnp.float32)
  logits_fn = jax.tree_util.Partial(linear, w, b)
  return logits_fn, w, x, jnp.argmax(logits_fn(None, x), 1)


def near_the_label():
  rng = np.random.default_rng(1)
  return jnp.asarray(0.3 + 0.1 * rng.random((6, 6)), jnp.float32)


@jax.jit
def least(norm, logits_fn, w, x, label):
  """The exact distances of a linear model, the box included."""
  logits, rows = logits_fn(None, x), jnp.arange(len(x))
  found = []
  for k in range(w.shape[1]):
    gap = logits[rows, label] - logits[:, k]
    project = jax.vmap(norm.to_hyperplane, in_axes=(0, 0, 0, None))
    normal = w.T[k][None] - w.T[label]
    delta = project(x, normal, gap, (0.0, 1.0))
    reached = jnp.sum(normal * delta, 1) >= gap - 1e-4
    usable = (label != k) & reached
    found.append(jnp.where(usable, jax.vmap(norm)(delta), jnp.inf))
  return jnp.min(jnp.stack(found), axis=0)


@jax.jit
def masked_step(attack, logits_fn, state):
  return oracles.choose(~state.done, attack.step(logits_fn, state)[0], state)


def states(attack, logits_fn, x, label):
  """The states after every step, as a driver would see them."""
  state = attack.init(jax.random.split(KEY, len(x)), x, label)
  for _ in range(attack.num_steps):
    state = masked_step(attack, logits_fn, state)
    yield state


def last(*args):
  *_, state = states(*args)
  return state


@pytest.mark.parametrize(
  ("name", "factory", "options"),
  [
    ("linf", fab_t, {"num_targets": 2}),
    ("l2", fab_t, {"num_targets": 2}),
    ("l1", fab_t, {"num_targets": 2}),
    ("l1", fab, {}),
  ],
)
def test_finds_the_distance_of_a_linear_model_in_the_box(
  name, factory, options
):
  logits_fn, w, x, label = victim(3)
  attack = factory(NORMS[name], num_steps=20, **options)
  state = last(attack, logits_fn, x, label)
  exact = np.asarray(least(NORMS[name], logits_fn, w, x, label))
  possible = np.isfinite(exact)
  assert possible.sum() >= 4
  np.testing.assert_array_equal(state.found, possible)
  np.testing.assert_allclose(state.distance[possible], exact[possible], 0.01)
  wrong = jnp.argmax(logits_fn(None, state.x_adv), 1) != label
  np.testing.assert_array_equal(wrong, possible)


def one_boundary():
  """A boundary 0.2 away from x, along `unit`; no other class, no bound near."""
  w = jnp.zeros((6, 3)).at[:2, 1].set(jnp.asarray([3.0, 4.0]))
  b = jnp.asarray([1.0, 0.0, -1e3])
  unit = np.array([[0.6, 0.8, 0.0, 0.0, 0.0, 0.0]])
  return jax.tree_util.Partial(linear, w, b), unit


MIDDLE, FIRST = jnp.full((6, 6), 0.5), jnp.zeros(6, int)


def test_a_move_follows_the_rule():
  logits_fn, unit = one_boundary()
  attack = fab_t(norms.L2, num_steps=3, num_targets=2, eta=0.8)
  first, second, *_ = states(attack, logits_fn, MIDDLE, FIRST)
  # From x both projections are the same.
  np.testing.assert_allclose(first.point[:1] - 0.5, 0.16 * unit, atol=1e-6)
  # Then 0.04 are left, so that the pull, 0.04 / (0.04 + 0.2), is capped.
  expected = 0.9 * (0.16 + 0.8 * 0.04) + 0.1 * 0.16
  np.testing.assert_allclose(second.point[:1] - 0.5, expected * unit, atol=1e-6)
  assert not second.found[0]


def test_an_adversarial_point_is_kept_and_drawn_back():
  logits_fn, unit = one_boundary()
  attack = fab_t(norms.L2, num_steps=2, num_targets=2, beta=0.5)
  first, second, *_ = states(attack, logits_fn, MIDDLE, FIRST)
  assert first.found[0] and first.step[0] == 1
  np.testing.assert_allclose(first.x_adv[:1] - 0.5, 0.21 * unit, atol=1e-6)
  np.testing.assert_allclose(first.point[:1] - 0.5, 0.105 * unit, atol=1e-6)
  # The second move ended the round: the next starts at the clean input.
  np.testing.assert_array_equal(second.point, MIDDLE)


def test_the_distance_never_grows_and_is_that_of_the_result():
  x = near_the_label()
  attack = fab_t(norms.L2, num_steps=6, num_targets=2, num_restarts=2)
  before = np.full(len(x), np.inf)
  for state in states(attack, curved, x, FIRST):
    assert np.all(state.distance <= before)
    before = np.asarray(state.distance)
    size = np.asarray(jax.vmap(norms.L2)(state.x_adv - x))
    found = np.asarray(state.found)
    np.testing.assert_allclose(size[found], before[found], rtol=1e-6)
    np.testing.assert_array_equal(found, np.isfinite(before))
    assert np.all((state.point >= 0) & (state.point <= 1))
  assert state.found.all() and state.done.all()
  assert np.all(jnp.argmax(curved(None, state.x_adv), 1) != 0)


def test_targets_are_the_likeliest_wrong_classes_of_the_clean_input():
  logits_fn, _, x, label = victim(3)
  attack = fab_t(norms.L2, num_steps=20, num_targets=2)
  first = next(states(attack, logits_fn, x, label))
  ranked = np.argsort(-np.asarray(logits_fn(None, x)), axis=1)
  np.testing.assert_array_equal(first.targets, ranked[:, 1:])


def test_the_nearest_class_is_found_behind_the_likeliest():
  w = jnp.zeros((6, 3)).at[0, 1].set(1.0).at[1, 2].set(9.0)
  logits_fn = jax.tree_util.Partial(linear, w, jnp.asarray([0.4, 0.3, 0.2]))
  for attack in (
    fab_t(norms.L1, num_steps=20, num_targets=2),
    fab(norms.L1, num_steps=20),
  ):
    delta = last(attack, logits_fn, MIDDLE, FIRST).x_adv[0] - 0.5
    assert abs(float(delta[0])) < 1e-3
    assert float(delta[1]) == pytest.approx(0.2 / 9, rel=0.01)


def test_eps_ends_a_row_within_it_and_only_there():
  logits_fn, w, x, label = victim(3)
  exact = np.asarray(least(norms.L2, logits_fn, w, x, label))
  eps = float(np.median(exact))
  cut, full = (
    last(
      fab_t(norms.L2, num_steps=20, num_targets=2, eps=eps), logits_fn, x, label
    )
    for eps in (eps, None)
  )
  near = exact < 0.98 * eps
  assert near.any() and not near.all()
  assert np.all(cut.distance[near] <= eps) and cut.done[near].all()
  assert np.all(cut.step[near] < full.step[near])
  far = exact > eps
  np.testing.assert_array_equal(cut.step[far], full.step[far])
  np.testing.assert_array_equal(cut.x_adv[far], full.x_adv[far])


@pytest.mark.parametrize("eps", [0.05, None])
def test_restarts_begin_at_half_of_the_least_radius_known(eps):
  x, begun, num_steps = near_the_label(), 0, 6
  attack = fab_t(
    norms.L2, num_steps=num_steps, num_targets=2, num_restarts=2, eps=eps
  )
  for state in states(attack, curved, x, FIRST):
    # While nothing is known, the size of the bounds is.
    radius = np.minimum(np.asarray(state.distance), eps or np.sqrt(6))
    rows = (state.step % (2 * num_steps) == num_steps) & ~state.done
    rows = np.asarray(rows)
    size = np.asarray(jax.vmap(norms.L2)(state.point - x))
    assert np.all(size[rows] > 0)
    assert np.all(size[rows] <= radius[rows] / 2 * (1 + 1e-4))
    if eps:
      np.testing.assert_allclose(size[rows], radius[rows] / 2, rtol=1e-4)
    begun += rows.sum()
  assert begun > 0


@pytest.mark.parametrize("broken", [0.0, jnp.nan])
@pytest.mark.parametrize(
  "attack",
  [
    fab_t(norms.L1, num_steps=3, num_targets=2),
    fab(norms.L1, num_steps=3),
  ],
)
def test_a_failure_keeps_the_clean_input(attack, broken):
  b = jnp.asarray([1.0, 0.0, 0.0]) + broken
  logits_fn = jax.tree_util.Partial(linear, jnp.zeros((6, 3)), b)
  for state in states(attack, logits_fn, MIDDLE, FIRST):
    assert np.isfinite(state.point).all()
  np.testing.assert_array_equal(state.x_adv, MIDDLE)
  assert not state.found.any() and state.done.all()


@pytest.mark.parametrize("eps", [None, 0.0, 0.1])
def test_an_input_that_is_wrong_already_is_its_own_result(eps):
  logits_fn, _, x, label = victim(3)
  attack = fab_t(norms.L2, num_steps=20, num_targets=2, eps=eps)
  state = next(states(attack, logits_fn, x, (label + 1) % 3))
  assert state.found.all() and state.done.all()
  np.testing.assert_array_equal(state.x_adv, x)


def test_every_question_has_keys_of_its_own():
  logits_fn, _, x, label = victim(3)
  asked = []

  def model(keys, x):
    asked.extend(map(tuple, np.asarray(jax.random.key_data(keys))))
    return logits_fn(keys, x)

  attack = fab_t(norms.L2, num_steps=2, num_targets=1)
  state = attack.init(jax.random.split(KEY, len(x)), x, label)
  for _ in range(2):
    state, _ = attack.step(model, state)
  assert len(set(asked)) == len(asked) == 2 * 2 * len(x)


def test_rows_do_not_touch_each_other():
  logits_fn, _, x, label = victim(3)
  attack = fab_t(norms.L2, num_steps=6, num_targets=2)
  before = last(attack, logits_fn, x, label)
  # Without random starts the key, and so the row's place, does not matter.
  turned = last(attack, logits_fn, jnp.roll(x, 1, 0), jnp.roll(label, 1))
  lone = last(attack, logits_fn, x.at[1:].set(0.5), label)
  np.testing.assert_array_equal(jnp.roll(turned.x_adv, -1, 0), before.x_adv)
  np.testing.assert_array_equal(lone.x_adv[0], before.x_adv[0])


def test_drives_a_data_set_and_counts_its_passes():
  logits_fn, _, x, label = victim(3)
  attack = fab(norms.L1, num_steps=5, num_candidates=3)
  record = engine.craft(attack, logits_fn, KEY, x, label, progress=False)
  assert record.success.any()
  np.testing.assert_array_equal(record.forwards, 2 * record.steps)
  np.testing.assert_array_equal(record.backwards, 3 * record.steps)
  assert record.steps.max() <= attack.num_steps == 5


def test_refuses_senseless_options():
  for name, value in {
    "num_steps": 0, "num_restarts": 0, "num_targets": 0, "eps": -1.0,
    "alpha_max": -0.1, "eta": 0.0, "beta": -0.1, "bounds": (1.0, 0.0),
  }.items():  # fmt: skip
    with pytest.raises(ValueError, match=name):
      fab_t(norms.L2, **{name: value})
  with pytest.raises(ValueError, match="num_candidates"):
    fab(norms.L2, num_candidates=1)
  logits_fn, _, x, label = victim(3)
  with pytest.raises(ValueError, match="num_targets"):
    engine.run(fab_t(norms.L2), logits_fn, KEY, x, label)


@pytest.mark.parametrize("name", NORMS)
def test_in_half_precision_a_model_without_slope_moves_nothing(name):
  x = jnp.full((2, 6), 0.5, jnp.float16)
  logits_fn = jax.tree_util.Partial(
    linear, jnp.zeros((6, 3), jnp.float16), jnp.arange(3, dtype=jnp.float16)
  )
  attack = fab_t(NORMS[name], num_steps=2, num_targets=1)
  for state in states(attack, logits_fn, x, jnp.full(2, 2)):
    np.testing.assert_array_equal(state.point, x)
