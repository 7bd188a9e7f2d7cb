"""The data-set driver: who is attacked with whom changes nothing."""

import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import (
  attacks,
  autoattack,
  balls,
  cascade,
  criteria,
  engine,
  evaluation,
  losses,
  models,
)
from jaxadv.engine.job import Job
from tests import victims

_KEY = jax.random.key(0)
_N, _STEPS = 90, 12
_RNG = np.random.default_rng(0)
_W = _RNG.normal(size=25).astype(np.float32)
_B = float(-_W.sum() / 2)
# Their Linf distances to the boundary spread evenly up to 0.13.
_X = 0.5 + _RNG.uniform(-0.13, 0.13, size=(_N, 1)) * np.sign(_W)
_X = (_X + 0.02 * _RNG.normal(size=(_N, 25))).astype(np.float32)
_X = _X.reshape(_N, 5, 5, 1)
_MARGIN = _X.reshape(_N, 25).astype(np.float64) @ _W + _B
_Y = (_MARGIN > 0).astype(np.int32)


def _victim():
  return victims.binary(_W, _B)


def _pgd(eps=0.1, start=attacks.in_ball, **parts):
  return attacks.pgd(
    balls.Linf(eps),
    num_steps=_STEPS,
    step_size=eps / 10,
    start=start,
    **parts,
  )


def _craft(attack=None, logits_fn=None, key=_KEY, x=_X, y=_Y, **options):
  options = {"slots": 8, "progress": False} | options
  return engine.craft(
    _pgd() if attack is None else attack,
    _victim() if logits_fn is None else logits_fn,
    key,
    x,
    y,
    **options,
  )


def _assert_same(a: engine.Record, b: engine.Record, rows=slice(None)):
  np.testing.assert_allclose(a.x_adv[rows], b.x_adv[rows], atol=1e-6)
  np.testing.assert_array_equal(a.success[rows], b.success[rows])
  np.testing.assert_array_equal(a.steps[rows], b.steps[rows])


def test_slots_do_not_matter_and_run_agrees():
  record = _craft()
  _assert_same(_craft(slots=64), record)
  x_adv = engine.run(_pgd(), _victim(), _KEY, _X, _Y)
  np.testing.assert_allclose(record.x_adv, x_adv, atol=1e-6)


def test_an_example_depends_on_its_place_alone():
  """Keys belong to places, so where two swap, only these two change."""
  order = np.arange(_N)
  order[[3, 70]] = [70, 3]
  swapped, record = _craft(x=_X[order], y=_Y[order]), _craft()
  _assert_same(swapped, record, order == np.arange(_N))
  assert not np.allclose(swapped.x_adv[3], record.x_adv[70], atol=1e-4)
  # Without randomness, the whole order is of no account.
  order = np.random.default_rng(1).permutation(_N)
  steepest = _pgd(start=attacks.at_input)
  shuffled = _craft(steepest, x=_X[order], y=_Y[order])
  record = _craft(steepest)
  np.testing.assert_allclose(shuffled.x_adv, record.x_adv[order], atol=1e-6)
  np.testing.assert_array_equal(shuffled.steps, record.steps[order])


def test_steps_are_those_of_the_closed_form():
  """Each step takes eps / 10 of the L1 norm off the margin; one more asks."""
  record = _craft(_pgd(start=attacks.at_input))
  moves = np.floor(abs(_MARGIN) / (0.01 * abs(_W).sum())) + 1
  reached = abs(_MARGIN) < 0.1 * abs(_W).sum() - 1e-4
  assert 0.3 < reached.mean() < 1 and len(np.unique(moves[reached])) > 5
  np.testing.assert_array_equal(record.success, reached)
  np.testing.assert_array_equal(record.steps[reached], moves[reached] + 1)
  assert (record.steps[~reached] == _STEPS).all()
  np.testing.assert_allclose(record.distance["linf"][~reached], 0.1, rtol=1e-5)
  curve = evaluation.success_against_steps(record, _STEPS)
  assert curve[0] == 0 and curve[-1] == pytest.approx(reached.mean())


def test_record_counts_passes_and_measures_distances():
  record = _craft(attacks.eot(_pgd(), 3))
  np.testing.assert_array_equal(record.forwards, 3 * record.steps)
  np.testing.assert_array_equal(record.backwards, 3 * record.steps)
  np.testing.assert_array_equal(record.index, np.arange(_N))
  delta = (record.x_adv - _X).reshape(_N, -1)
  np.testing.assert_allclose(
    record.distance["l2"], np.linalg.norm(delta, axis=1), rtol=1e-4
  )
  assert evaluation.inside(balls.Linf(0.1), _X, record.x_adv).all()


def test_undefended_examples_cost_what_they_need():
  """Refilled slots waste little: rows asked about, against steps needed."""
  logits_fn = victims.counted(_victim())
  attack = _pgd(0.3, start=attacks.at_input)
  big, labels = np.concatenate([_X] * 4), np.concatenate([_Y] * 4)
  before = victims.asked()
  record = _craft(attack, logits_fn, x=big, y=labels, slots=8)
  rows = (victims.asked() - before)["rows"]
  # The judge asks about 8 rows before and about every row after.
  judged = 8 + -(-len(big) // 8) * 8
  assert record.success.all() and len(np.unique(record.steps)) > 3
  assert rows - judged <= 1.15 * record.steps.sum()


@pytest.mark.parametrize("num_examples", [1, 3, 8, 17])
def test_data_sets_of_any_size(num_examples):
  few = _craft(x=_X[:num_examples], y=_Y[:num_examples])
  whole = _craft()
  assert len(few.x_adv) == len(few.distance["l1"]) == num_examples
  np.testing.assert_allclose(few.x_adv, whole.x_adv[:num_examples], atol=1e-6)
  np.testing.assert_array_equal(few.steps, whole.steps[:num_examples])


def test_targets_may_be_any_pytree():
  x = _X[:20]
  logits_fn = victims.ordinary(25, 4)
  label = victims.logits(logits_fn, x).argmax(axis=1).astype(np.int32)
  y = (label, (label + 1) % 4)
  attack = _pgd(
    loss_fn=losses.targeted_dlr, criterion=criteria.misclassified_pair
  )
  record = _craft(attack, logits_fn, x=x, y=y)
  expected = engine.run(
    attack, logits_fn, _KEY, x, jax.tree.map(jnp.asarray, y)
  )
  np.testing.assert_allclose(record.x_adv, expected, atol=1e-6)
  fooled = evaluation.fooled(logits_fn, _KEY, record.x_adv, label)
  np.testing.assert_array_equal(record.success, fooled)
  assert record.success.any()


def test_success_is_the_judge_s_word_not_the_attack_s():
  record = _craft(
    _pgd(criterion=criteria.never), criterion=criteria.misclassified
  )
  assert record.success.any() and (record.steps == _STEPS).all()
  fooled = evaluation.fooled(_victim(), _KEY, record.x_adv, _Y)
  np.testing.assert_array_equal(record.success, fooled)


def test_a_progress_bar_does_no_harm(capsys):
  _assert_same(_craft(progress=True, name="mine"), _craft())
  out = capsys.readouterr().out
  assert f"{_N}/{_N} examples" in out and "mine" in out


@pytest.mark.parametrize(
  ("changes", "error", "words"),
  [
    ({"x": (_X * 255).astype(np.uint8)}, TypeError, "images must be floating"),
    ({"x": 2 * _X}, ValueError, "images must lie in bounds"),
    ({"x": _X * np.inf}, ValueError, "NaN or infinite"),
    ({"x": _X[:0], "y": _Y[:0]}, ValueError, "at least one example"),
    ({"y": _Y.astype(float)}, TypeError, "y must hold integer labels"),
    ({"y": _Y + 1}, ValueError, "y must hold labels >= 0 and < 2"),
    ({"y": _Y[:-1]}, ValueError, "one row per row of x"),
    ({"slots": 0}, ValueError, "slots must be at least 1"),
    ({"slots": 2.5}, TypeError, "slots must be a whole number"),
    (
      {"logits_fn": jax.tree_util.Partial(lambda keys, x: jnp.zeros((1, 2)))},
      ValueError,
      "one row per input",
    ),
  ],
)
def test_refuses_bad_input(changes, error, words):
  with pytest.raises(error, match=words):
    _craft(**changes)


def _softmax(keys, x):
  return jax.nn.softmax(_victim()(keys, x))


def test_warns_of_a_model_that_ends_in_a_softmax():
  with pytest.warns(UserWarning, match="probabilities"):
    _craft(logits_fn=jax.tree_util.Partial(_softmax))


def test_bounds_that_float32_cannot_hold():
  """2.2 in float32 is more than 2.2: results at it are inside all the same."""
  bounds = (-1.7, 2.2)
  x = (np.float32(bounds[0]) + np.float32(3.9) * _X).clip(*np.float32(bounds))
  attack = attacks.pgd(
    balls.Linf(3.0), num_steps=3, step_size=3.0, bounds=bounds
  )
  record = _craft(attack, x=x)
  assert record.inside.all()
  _craft(attack, x=record.x_adv)


def test_channels_first_are_not_read_as_rows():
  x = np.full((4, 3, 8, 8), 0.5, np.float32)
  model = models.bind(lambda w, x: x.reshape(len(x), -1) @ w, np.eye(192, 3))
  square = attacks.square(balls.Linf(0.1), num_queries=5)
  with pytest.raises(ValueError, match="looks like channels first"):
    _craft(square, model, x=x, y=np.zeros(4, np.int32))


def test_a_cascade_looks_at_all_its_attacks_first():
  x = np.full((4, 12), 0.5, np.float32)
  model = victims.counted(models.bind(_flat, np.eye(12, 3, dtype=np.float32)))
  before = victims.asked()
  with pytest.raises(ValueError, match="leave such an attack"):
    cascade.cascade(
      autoattack.standard(balls.Linf(0.1), 3),
      model,
      _KEY,
      x,
      np.zeros(4, np.int32),
    )
  assert not (victims.asked() - before)["calls"]


def _flat(w, x):
  return x @ w


def _huge(keys, x):
  huge = jnp.ones((len(x), 1 << 23, 1 << 23)) * x.sum()
  return _victim()(keys, x) + jax.lax.sort(huge).sum(axis=(1, 2))[:, None]


@pytest.mark.parametrize("slots", [8, 16])
def test_too_little_memory_names_the_slots(slots):
  with pytest.raises(
    MemoryError, match=f"^slots={slots} .* take fewer"
  ) as error:
    _craft(logits_fn=jax.tree_util.Partial(_huge), slots=slots)
  assert "\n" not in str(error.value)
  with pytest.raises(MemoryError, match=f"^slots={slots} .* take fewer"):
    cascade.cascade(
      {"pgd": _pgd()},
      jax.tree_util.Partial(_huge),
      _KEY,
      _X,
      _Y,
      slots=slots,
      progress=False,
    )


def test_few_programs_are_compiled(caplog):
  """Two sizes of slots at most, and none for slots without rows."""
  attack = attacks.pgd(balls.Linf(0.1), num_steps=25, step_size=0.01)
  with jax.log_compiles(), caplog.at_level(logging.WARNING):
    record = _craft(attack, slots=48)
  assert len(np.unique(record.steps)) > 4
  compiled = re.findall(r"Compiling jit\((\w+)\)", caplog.text)
  assert compiled.count("segment") == 2 and "empty" not in compiled


def test_slots_that_stay_empty_hold_possible_states():
  """They take part in every step: nothing in them may overflow or loop."""
  attack = _pgd(eps=1e-3)
  index = np.arange(3, dtype=np.int32)
  job = Job(attack, _victim(), _KEY, _X[:3], _Y[:3], index, 8, None)
  job.advance()
  np.testing.assert_array_equal(job.slots.example[3:], -1)
  spread = np.abs(np.asarray(job.slots.state.x_adv) - _X[0]).max(axis=(1, 2, 3))
  assert (spread[3:] <= 1.001e-3).all()
