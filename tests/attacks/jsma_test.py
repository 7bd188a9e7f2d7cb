"""JSMA against closed forms, a search over all pairs and the known traps."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import attacks, criteria, engine, losses
from jaxadv.attacks.jsma import _best_pair, jsma, jsma_single
from tests import contract, victims

KEY = jax.random.key(0)
WON = criteria.classified_as
craft = functools.partial(engine.craft, progress=False, criterion=WON)


@pytest.mark.parametrize("theta", [1.0, -1.0])
def test_changes_the_fewest_features_of_a_linear_model(theta):
  """All have the same room, so the fewest are those of largest slope."""
  w = np.random.default_rng(0).normal(size=200)
  slopes = np.cumsum(np.sort(theta * w)[::-1])
  start = 0.0 if theta > 0 else 1.0
  x, target = np.full((1, 200), start, np.float32), np.ones(1, np.int32)
  for gap in (3.0, 11.3, 24.7, 26.2):
    fewest = int(np.searchsorted(slopes, gap)) + 1
    b = -gap - start * w.sum()
    logits_fn = victims.linear(np.stack([-w, w], axis=1), [-b, b])
    pairs = craft(jsma(theta=theta), logits_fn, KEY, x, target)
    singles = craft(jsma_single(theta=theta), logits_fn, KEY, x, target)
    assert pairs.success.all() and singles.success.all()
    even = fewest + fewest % 2
    assert pairs.distance["l0"][0] == even
    assert singles.distance["l0"][0] == fewest
    # One step more than changes, which asks about the result.
    assert pairs.steps[0] == pairs.forwards[0] == even / 2 + 1
    assert singles.steps[0] == fewest + 1
    assert pairs.backwards[0] == 2 * pairs.steps[0]
    assert set(np.unique(pairs.x_adv)) == {0.0, 1.0}


def _by_hand(w, b, x, target, theta, size):
  """The search in plain loops: features changed in each step, and the end."""
  x, chosen = x.astype(np.float64), []
  while np.argmax(x @ w + b) != target:
    gain = np.sign(theta) * w[:, target]
    loss = -np.sign(theta) * (w.sum(axis=1) - w[:, target])
    free = [i for i in range(len(x)) if (x[i] < 1 if theta > 0 else x[i] > 0)]
    best, found = 0.0, None
    for places in itertools.combinations(free, size):
      a, c = gain[list(places)].sum(), loss[list(places)].sum()
      if a > 0 and c > 0 and a * c > best:
        best, found = a * c, list(places)
    if found is None:
      return None, chosen
    chosen.append(found)
    x[found] = np.clip(x[found] + theta, 0, 1)
  return x, chosen


@pytest.mark.parametrize("theta", [1.0, -1.0, 0.4])
@pytest.mark.parametrize("size", [1, 2])
def test_follows_the_papers_search(theta, size):
  rng = np.random.default_rng(3)
  w, b = rng.normal(size=(40, 4)), np.zeros(4)
  x = rng.choice([0.0, 0.3, 0.55, 1.0], size=(6, 40)).astype(np.float32)
  target = np.argsort(x @ w, axis=1)[:, 1].astype(np.int32)
  attack = (jsma_single if size == 1 else jsma)(theta=theta, gamma=3.0)
  record = craft(attack, victims.linear(w, b), KEY, x, target)
  ends = [_by_hand(w, b, x[i], target[i], theta, size) for i in range(6)]
  for i, (end, chosen) in enumerate(ends):
    assert record.success[i] == (end is not None)
    np.testing.assert_allclose(
      record.x_adv[i], x[i] if end is None else end, atol=1e-6
    )
    assert record.steps[i] == len(chosen) + 1
  assert max(len(chosen) for _, chosen in ends) > 1
  assert record.success.any()


def test_the_best_pair_is_found_among_all_in_blocks():
  rng = np.random.default_rng(0)
  for num_features in (2, 31, 32, 33, 100):
    gain, loss = rng.normal(size=(2, num_features)).astype(np.float32)
    gain[0] = loss[0] = -np.inf
    gain[1], loss[1] = 0.1, 9.0
    score, pair = _best_pair(jnp.asarray(gain), jnp.asarray(loss))
    sums = gain[:, None] + gain[None], loss[:, None] + loss[None]
    scores = np.where((sums[0] > 0) & (sums[1] > 0), sums[0] * sums[1], 0.0) * (
      1 - np.eye(num_features)
    )
    np.testing.assert_allclose(score, scores.max(), rtol=1e-6)
    if scores.max() > 0:
      p, q = pair
      assert p < q
      np.testing.assert_allclose(scores[p, q], score, rtol=1e-6)


def test_a_pair_may_win_where_no_single_feature_is_salient():
  """Feature 0 helps the target and the others, feature 1 harms both."""
  w = np.asarray([[3.0, 1.0], [-1.0, -3.0]])[:, ::-1]
  x, target = np.zeros((1, 2), np.float32), np.ones(1, np.int32)
  logits_fn = victims.linear(w, [3.5, 0.0])
  both = craft(jsma(gamma=1.0), logits_fn, KEY, x, target)
  one = craft(jsma_single(gamma=1.0), logits_fn, KEY, x, target)
  np.testing.assert_array_equal(both.x_adv, [[1.0, 1.0]])
  assert both.success[0] and not one.success[0]
  np.testing.assert_array_equal(one.x_adv, x)
  assert one.steps[0] == 1


def _endless(num_features=30):
  """Every change helps, none is enough."""
  w = np.stack([-np.ones(num_features), np.ones(num_features)], axis=1)
  x = np.zeros((1, num_features), np.float32)
  return victims.linear(w, [0.0, -1e3]), x, np.ones(1, np.int32)


@pytest.mark.parametrize(
  ("gamma", "pairs"), [(0.0, 0), (0.1, 1), (0.2, 3), (0.5, 7), (1.0, 15)]
)
def test_gamma_is_the_share_of_features_that_may_change(gamma, pairs):
  logits_fn, x, target = _endless()
  record = craft(jsma(gamma=gamma), logits_fn, KEY, x, target)
  assert not record.success[0]
  np.testing.assert_array_equal(record.x_adv, x)
  # Where all features are used up, one more step finds that none is left.
  assert record.steps[0] == pairs + 1
  single = craft(jsma_single(gamma=gamma), logits_fn, KEY, x, target)
  assert single.steps[0] == round(30 * gamma) + 1


def test_tiny_and_huge_derivatives_are_compared_alike():
  rng = np.random.default_rng(0)
  w = rng.normal(size=(20, 3))
  x, target = np.zeros((1, 20), np.float32), np.ones(1, np.int32)
  b = np.asarray([4.0, 0.0, 3.0])
  ends = [
    craft(jsma(gamma=1.0), victims.linear(c * w, c * b), KEY, x, target)
    for c in (1.0, 1e-25, 1e25)
  ]
  assert ends[0].success[0] and ends[0].steps[0] > 1
  for end in ends[1:]:
    np.testing.assert_array_equal(end.x_adv, ends[0].x_adv)


def test_takes_the_pair_of_label_and_target_that_combinators_hand_it():
  rng = np.random.default_rng(0)
  w, x = rng.normal(size=(30, 4)), np.zeros((3, 30), np.float32)
  b = np.asarray([3.0, 0.0, 0.0, 0.0])
  logits_fn, label = victims.linear(w, b), np.zeros(3, np.int32)
  attack = attacks.multi_targeted(
    jsma(gamma=1.0, num_steps=20, criterion=criteria.misclassified_pair),
    3,
    loss_fn=losses.margin,
  )
  keys = jax.random.split(KEY, 3)
  end = contract.drive(attack, logits_fn, keys, x, label).state
  assert end.found.all()
  best = np.argmax(np.asarray(end.x_adv) @ w + b, axis=1)
  assert (best != 0).all()


def test_an_input_of_the_target_class_is_its_own_result():
  logits_fn, x, target = _endless()
  record = craft(jsma(), logits_fn, KEY, x, 1 - target)
  assert record.success[0] and record.steps[0] == 1
  np.testing.assert_array_equal(record.x_adv, x)


@pytest.mark.parametrize("factory", [jsma, jsma_single])
@pytest.mark.parametrize(
  "options",
  [{"theta": 0.0}, {"gamma": -0.1}, {"num_steps": 0}, {"bounds": (1.0, 0.0)}],
)
def test_refuses_senseless_options(factory, options):
  with pytest.raises(ValueError, match=next(iter(options))):
    factory(**options)
