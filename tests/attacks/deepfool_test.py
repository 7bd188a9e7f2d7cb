"""DeepFool against closed forms and a re-derivation in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import criteria, engine, norms
from jaxadv.attacks.deepfool import deepfool

KEY = jax.random.key(0)
WIDE = (-100.0, 100.0)


def linear(w, b, keys, x):
  del keys
  return x @ w + b[None]


@jax.tree_util.Partial
def curved(keys, x):
  del keys
  lead = jnp.log1p(x[:, 0]) + 0.3 * x[:, 1] - 1.5
  return jnp.stack([jnp.zeros_like(lead), lead], axis=1)


@jax.tree_util.Partial
def flat(keys, x):
  del keys
  return jnp.stack([1 + 0 * x[:, 0], 0 * x[:, 0]], axis=1)


@jax.tree_util.Partial
def broken(keys, x):
  return flat(keys, x) + jnp.nan


def victim(seed=0, size=6, num_classes=4):
  rng = np.random.default_rng(seed)
  w = jnp.asarray(rng.normal(size=(size, num_classes)), jnp.float32)
  b = jnp.asarray(rng.normal(size=num_classes), jnp.float32)
  x = jnp.asarray(rng.normal(size=(7, size)), jnp.float32)
  return (
    jax.tree_util.Partial(linear, w, b),
    w,
    x,
    jnp.argmax(x @ w + b[None], 1),
  )


def distances(norm, logits_fn, w, x, label):
  logits = np.asarray(logits_fn(None, x))
  rows = np.arange(len(x))
  dual = np.asarray(
    jax.vmap(jax.vmap(norm.dual))(w.T[None] - w.T[label][:, None])
  )
  dual = np.array(dual)
  leads = np.abs(logits - logits[rows, label][:, None])
  leads[rows, label], dual[rows, label] = np.inf, 1.0
  return (leads / dual).min(1)


@pytest.mark.parametrize("norm", [norms.L2, norms.Linf], ids=["l2", "linf"])
def test_finds_the_distance_of_a_linear_model(norm):
  logits_fn, w, x, label = victim()
  attack = deepfool(norm, overshoot=0.0, bounds=WIDE)
  record = engine.craft(attack, logits_fn, KEY, x, label, progress=False)
  assert record.success.all()
  found = jax.vmap(norm)(record.x_adv - x)
  np.testing.assert_allclose(
    found, distances(norm, logits_fn, w, x, label), rtol=0.01
  )
  np.testing.assert_array_equal(record.steps, 2)
  np.testing.assert_array_equal(record.backwards, 20)


def test_the_overshoot_applies_to_the_sum_of_all_steps():
  x, overshoot = np.array([0.3, 0.2]), 0.05
  point, total, count = x, np.zeros(2), 0
  while (lead := np.log1p(point[0]) + 0.3 * point[1] - 1.5) <= 0:
    normal = np.array([1 / (1 + point[0]), 0.3])
    length = np.linalg.norm(normal)
    total = total + (abs(lead) / length + 1e-4) * normal / length
    point, count = x + (1 + overshoot) * total, count + 1
  assert count > 2
  attack = deepfool(norms.L2, overshoot=overshoot, bounds=WIDE)
  x_adv = engine.run(
    attack,
    curved,
    KEY,
    jnp.asarray(x[None], jnp.float32),
    jnp.zeros(1, int),
  )
  np.testing.assert_allclose(x_adv[0], point, rtol=1e-4)


def test_an_input_that_is_wrong_already_is_its_own_result():
  logits_fn, _, x, label = victim()
  record = engine.craft(
    deepfool(norms.L2, bounds=WIDE),
    logits_fn,
    KEY,
    x,
    (label + 1) % 4,
    progress=False,
  )
  assert record.success.all()
  np.testing.assert_array_equal(record.x_adv, x)
  np.testing.assert_array_equal(record.steps, 1)


@pytest.mark.parametrize("model", [flat, broken])
def test_a_failure_keeps_the_clean_input(model):
  x = jnp.full((2, 3), 0.5)
  attack = deepfool(norms.L2, num_steps=3)
  state = attack.init(jax.random.split(KEY, 2), x, jnp.zeros(2, int))
  step = jax.jit(attack.step)
  for _ in range(attack.num_steps):
    state, _ = step(model, state)
  np.testing.assert_array_equal(state.x_adv, x)
  assert np.isfinite(state.point).all()
  # Logits that are no numbers are misclassified where they are.
  assert (state.found == (model is broken)).all()


def test_looks_at_candidates_only_and_takes_the_nearest():
  # Class 1 is the likeliest of the others, class 2 the nearest.
  w = jnp.asarray([[0.0, 1.0, 0.0], [0.0, 0.0, 9.0]])
  b = jnp.asarray([3.0, 2.0, 1.0])
  logits_fn = jax.tree_util.Partial(linear, w, b)
  x, label = jnp.zeros((1, 2)), jnp.zeros(1, int)

  def moved(num_candidates):
    attack = deepfool(norms.L2, num_candidates=num_candidates, bounds=WIDE)
    return np.asarray(engine.run(attack, logits_fn, KEY, x, label)[0])

  assert moved(2)[0] > 1 and moved(2)[1] == 0
  assert moved(3)[0] == 0 and 0.22 < moved(3)[1] < 0.25


def test_rows_stop_on_their_own_and_ignore_each_other():
  x = jnp.asarray([[0.3, 0.2], [5.0, 0.0], [3.4, 0.0]])
  label = jnp.zeros(3, int)
  attack = deepfool(norms.L2, bounds=WIDE)
  together = engine.craft(attack, curved, KEY, x, label, progress=False)
  assert len(set(together.steps)) == 3
  for i in range(3):
    alone = engine.craft(
      attack, curved, KEY, x[i : i + 1], label[:1], progress=False
    )
    np.testing.assert_allclose(alone.x_adv[0], together.x_adv[i], rtol=1e-5)
    assert alone.steps[0] == together.steps[i]


def test_stays_in_bounds_and_asks_about_the_last_point():
  x, label = jnp.full((1, 2), 0.9), jnp.zeros(1, int)
  attack = deepfool(norms.L2, num_steps=4)
  record = engine.craft(attack, curved, KEY, x, label, progress=False)
  assert not record.success[0] and record.steps[0] == 5
  one = deepfool(norms.L2, num_steps=1, overshoot=1.0, bounds=WIDE)
  x_adv = engine.run(one, curved, KEY, x + 1, label)
  assert curved(None, x_adv)[0, 1] > 0


def test_l1_passes_over_what_is_at_the_bounds():
  # The first two coordinates have room for 1.2 of 1.5, the third for the rest.
  w = jnp.asarray([[0.0, 4.0], [0.0, -2.0], [0.0, 1.0]])
  x = jnp.asarray([[0.8, 0.2, 0.5]])
  b = -(x @ w)[0] - jnp.asarray([0.0, 1.5])
  logits_fn = jax.tree_util.Partial(linear, w, b)
  record = engine.craft(
    deepfool(norms.L1), logits_fn, KEY, x, jnp.zeros(1, int), progress=False
  )
  assert record.success[0]
  np.testing.assert_allclose(record.distance["l1"], 0.2 + 0.2 + 0.3, rtol=0.05)
  assert record.steps[0] <= 5


def test_the_criterion_decides_when_to_stop():
  logits_fn, _, x, label = victim()
  attack = deepfool(
    norms.L2,
    criterion=criteria.misclassified_with(0.5),
    overshoot=0.5,
    bounds=WIDE,
  )
  logits = logits_fn(None, engine.run(attack, logits_fn, KEY, x, label))
  rows = jnp.arange(len(x))
  won = jnp.max(logits, 1) - logits[rows, label]
  assert float(won.min()) >= 0.5


@pytest.mark.parametrize(
  "options",
  [
    {"num_steps": 0},
    {"num_candidates": 1},
    {"num_candidates": 2.5},
    {"overshoot": -0.1},
    {"bounds": (1.0, 0.0)},
  ],
)
def test_refuses_senseless_options(options):
  with pytest.raises((TypeError, ValueError), match=next(iter(options))):
    deepfool(norms.L2, **options)
