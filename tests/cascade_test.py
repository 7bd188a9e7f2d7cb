"""Attacks in a row: survivors only, worst case, gone on with as if unbroken."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxadv import attacks, balls, cascade, engine, evaluation, losses, models
from jaxadv.attacks import square
from tests import victims

_KEY = jax.random.key(0)
_BALL = balls.Linf(0.12)
_X, _Y = victims.blobs(40)
# A few are misclassified from the start.
_Y = np.where(np.arange(40) % 13 == 0, (_Y + 1) % 4, _Y).astype(np.int32)


def _without_ball(attack):
  return attack._replace(threat=attack.threat._replace(ball=None))


_TABLE = {
  "weak": attacks.pgd(_BALL, num_steps=2, step_size=0.06),
  "far": _without_ball(
    attacks.pgd(balls.Linf(0.4), num_steps=3, step_size=0.4)
  ),
  "strong": attacks.pgd(
    _BALL, num_steps=12, step_size=0.02, loss_fn=losses.margin
  ),
}


def _run(table=_TABLE, logits_fn=None, x=_X, y=_Y, **options):
  options = {"ball": _BALL, "slots": 8, "progress": False} | options
  logits_fn = victims.trained() if logits_fn is None else logits_fn
  return cascade.cascade(table, logits_fn, _KEY, x, y, **options)


def _assert_same(a: cascade.Result, b: cascade.Result):
  jax.tree.map(np.testing.assert_array_equal, vars(a.record), vars(b.record))
  np.testing.assert_array_equal(a.broken_by, b.broken_by)
  assert a.robust_accuracy == b.robust_accuracy
  assert a.suspicions == b.suspicions


def test_the_worst_case_is_the_union_of_the_attacks_alone():
  whole = _run()
  alone = {name: _run({name: _TABLE[name]}) for name in _TABLE}
  union = np.any([result.record.success for result in alone.values()], axis=0)
  np.testing.assert_array_equal(whole.record.success, union)
  names = set(whole.broken_by)
  assert {"", cascade.CLEAN, "weak", "strong"} <= names
  for name, result in alone.items():
    # Who else survived changes nothing: the very images are the same.
    mine = whole.broken_by == name
    np.testing.assert_allclose(
      whole.record.x_adv[mine], result.record.x_adv[mine], atol=1e-6
    )


def test_the_progress_bar_names_the_attack(capsys):
  _run({"weak": _TABLE["weak"], "far": _TABLE["far"]}, progress=True)
  out = capsys.readouterr().out
  assert out.index("weak") < out.index("far")


def test_the_result_holds_together():
  result = _run()
  wrong = evaluation.fooled(victims.trained(), _KEY, _X, _Y)
  np.testing.assert_array_equal(result.broken_by == cascade.CLEAN, wrong)
  record = result.record
  np.testing.assert_array_equal(record.success, result.broken_by != "")
  fooled = evaluation.fooled(victims.trained(), _KEY, record.x_adv, _Y)
  np.testing.assert_array_equal(fooled, record.success)
  untouched = ~record.success | wrong
  np.testing.assert_array_equal(record.x_adv[untouched], _X[untouched])
  assert evaluation.inside(_BALL, _X, record.x_adv).all()
  names = [cascade.CLEAN, *_TABLE]
  assert list(result.robust_accuracy) == names
  assert list(result.seconds) == names[1:]
  broken = np.ones(len(_X), bool)
  for name in names:
    broken &= result.broken_by != name
    assert result.robust_accuracy[name] == pytest.approx(broken.mean())


def test_the_cost_is_that_of_all_attacks():
  record = _run().record
  alone = {
    name: engine.craft(
      _TABLE[name],
      victims.trained(),
      jax.random.fold_in(_KEY, zlib.crc32(name.encode())),
      _X,
      _Y,
      slots=8,
      progress=False,
    )
    for name in _TABLE
  }
  survivors = ~record.success
  everything = sum(each.steps for each in alone.values())
  np.testing.assert_array_equal(record.steps[survivors], everything[survivors])
  wrong = evaluation.fooled(victims.trained(), _KEY, _X, _Y)
  assert not record.backwards[wrong].any()


def test_results_outside_the_ball_break_nothing():
  result = _run({"far": _TABLE["far"]})
  record = engine.craft(
    _TABLE["far"], victims.trained(), _KEY, _X, _Y, slots=8, progress=False
  )
  inside = evaluation.inside(_BALL, _X, record.x_adv)
  assert (record.success & ~inside).sum() > 10
  assert evaluation.inside(_BALL, _X, result.record.x_adv).all()


def test_survivors_only_are_attacked():
  pgd = attacks.pgd(balls.Linf(0.5), num_steps=12, step_size=0.05)
  counted = victims.counted(victims.trained())
  _run({"first": pgd}, counted, ball=balls.Linf(0.5))
  once = victims.asked()
  second = attacks.pgd(balls.Linf(0.5), num_steps=12, step_size=0.02)
  table = {"first": pgd, "second": second}
  result = _run(table, counted, ball=balls.Linf(0.5))
  twice = victims.asked() - once
  assert result.record.success.all()
  assert result.seconds["second"] == 0.0
  assert result.robust_accuracy["second"] == 0.0
  assert twice["rows"] <= once["rows"]


def test_stopped_after_every_segment(tmp_path):
  # Its answers depend on keys, which therefore must survive, too.
  whole = _run(logits_fn=victims.stochastic(25, 4))
  folder, stops = tmp_path / "job", 0
  while True:
    try:
      result = _run(
        logits_fn=victims.stochastic(25, 4),
        checkpoint_dir=folder,
        stop=lambda: True,
      )
      break
    except engine.Interrupted:
      stops += 1
  assert stops >= 3
  _assert_same(result, whole)
  assert not list(folder.glob("*partial*"))


def test_a_finished_folder_attacks_no_more(tmp_path):
  counted = victims.counted(victims.trained())
  first = _run(logits_fn=counted, checkpoint_dir=tmp_path)
  before = victims.asked()["rows"]
  again = _run(logits_fn=counted, checkpoint_dir=tmp_path)
  # The judge and the suspicions ask once more, the attacks do not.
  assert victims.asked()["rows"] - before < 6 * len(_X)
  _assert_same(first, again)
  assert again.seconds == first.seconds


def _closure(w):
  return jax.tree_util.Partial(lambda keys, x: x.reshape(len(x), -1) @ w)


_W = np.random.default_rng(0).normal(size=(25, 4)).astype(np.float32)


@pytest.mark.parametrize(
  ("other", "words"),
  [
    ({"x": _X**2}, "data set"),
    ({"y": (_Y + 1) % 4}, "data set"),
    ({"logits_fn": victims.ordinary(25, 4)}, "model"),
    ({"logits_fn": _closure(-_W)}, "model"),
  ],
  ids=["images", "labels", "model", "closure"],
)
def test_refuses_the_folder_of_another_job(tmp_path, other, words):
  table = {"weak": _TABLE["weak"]}
  _run(table, logits_fn=_closure(_W), checkpoint_dir=tmp_path)
  before = {"table": table, "logits_fn": _closure(_W)}
  with pytest.raises(ValueError, match=f"is of another {words}:"):
    _run(**(before | other), checkpoint_dir=tmp_path)
  _run(**before, checkpoint_dir=tmp_path)


def _with_rate(rate):
  return attacks.projected_gradient(_BALL, optax.rmsprop(rate), num_steps=3)


@pytest.mark.parametrize(
  "other",
  [_TABLE["strong"], _with_rate(0.5)],
  ids=["attack", "function"],
)
def test_a_changed_attack_runs_anew_and_the_others_do_not(
  tmp_path, other, capsys
):
  table = {"two": _TABLE["weak"], "one": _with_rate(0.01)}
  _run(table, checkpoint_dir=tmp_path)
  kept = (tmp_path / "two.npz").read_bytes()
  changed = {"two": _TABLE["weak"], "one": other}
  result = _run(changed, checkpoint_dir=tmp_path)
  _assert_same(result, _run(changed))
  out = capsys.readouterr().out
  assert "one.npz is of another attack" in out and out.count("anew") == 1
  assert (tmp_path / "two.npz").read_bytes() == kept


def test_records_are_aligned_with_who_is_attacked_now(tmp_path, capsys):
  """An attack that is put before others leaves them fewer examples."""
  table = {"strong": _TABLE["strong"]}
  _run(table, checkpoint_dir=tmp_path)
  longer = {"weak": _TABLE["weak"]} | table
  result = _run(longer, checkpoint_dir=tmp_path)
  assert (result.broken_by == "weak").sum() > 3
  _assert_same(result, _run(longer))
  assert "anew" not in capsys.readouterr().out


def test_a_record_that_lacks_examples_is_made_anew(tmp_path, capsys):
  longer = {"weak": _TABLE["weak"], "strong": _TABLE["strong"]}
  _run(longer, checkpoint_dir=tmp_path)
  alone = {"strong": _TABLE["strong"]}
  _assert_same(_run(alone, checkpoint_dir=tmp_path), _run(alone))
  assert "strong.npz lacks" in capsys.readouterr().out


def test_another_ball_judges_what_is_there(tmp_path):
  table = {"far": _TABLE["far"]}
  _run(table, checkpoint_dir=tmp_path)
  wide = balls.Linf(0.4)
  result = _run(table, ball=wide, checkpoint_dir=tmp_path)
  _assert_same(result, _run(table, ball=wide))
  assert (result.broken_by == "far").sum() > 10


def test_verdicts_on_randomised_models_ask_for_means():
  """One draw errs in a part of the examples; the mean of many in few."""
  logits_fn = victims.mixed(25, 4, scale=0.02, noise=1.0)
  steady = victims.mixed(25, 4, scale=0.02)
  y = victims.logits(steady, _X).argmax(1).astype(np.int32)
  none = {"none": attacks.pgd(_BALL, num_steps=1, step_size=0.1)}
  once, often = (
    _run(none, logits_fn, y=y, num_draws=n).robust_accuracy[cascade.CLEAN]
    for n in (1, 500)
  )
  assert often > once + 0.05


def test_suspicions_are_reported():
  query_only = {"square": square(_BALL, num_queries=3)}
  assert _run(query_only, victims.query_only(25, 4)).suspicions == ()
  messages = _run({"weak": _TABLE["weak"]}, victims.constant(25, 4)).suspicions
  assert len(messages) == 2
  assert all("is zero" in message for message in messages)


def _rounded(w, x):
  return jnp.round(20 * x.reshape(len(x), -1)) @ w


def test_square_wins_where_gradients_are_masked():
  masked = models.bind(_rounded, np.eye(25, 4, dtype=np.float32))
  y = victims.logits(masked, _X).argmax(1).astype(np.int32)
  table = {"weak": _TABLE["weak"], "square": square(_BALL)}
  messages = " ".join(_run(table, masked, y=y).suspicions)
  assert "outputs only" in messages and "gradient of DLR is zero" in messages


@pytest.mark.parametrize(
  ("changes", "error", "words"),
  [
    ({"table": {}}, ValueError, "attacks must have names"),
    ({"table": {"a/b": _TABLE["weak"]}}, ValueError, "a/b"),
    ({"table": {"clean": _TABLE["weak"]}}, ValueError, "other than 'clean'"),
    ({"x": _X[:0], "y": _Y[:0]}, ValueError, "at least one example"),
    ({"x": _X + 1}, ValueError, "images must lie in bounds"),
    ({"y": _Y[:-1]}, ValueError, "one row per row"),
    ({"num_draws": 0}, ValueError, "num_draws must be at least 1"),
    ({"slots": 0}, ValueError, "slots must be at least 1"),
  ],
)
def test_refuses_bad_input(changes, error, words):
  with pytest.raises(error, match=words):
    _run(**changes)


def _overflows(w, x):
  """Linear in the half of dark inputs, no number where the first pixel is."""
  flat = x.reshape(len(x), -1)
  logits = flat @ w
  return jnp.where(flat[:, :1] > 0.55, jnp.nan, logits)


def test_an_input_that_overflows_is_not_robust():
  w = np.eye(25, 4, k=-1, dtype=np.float32)
  x = np.full((6, 5, 5, 1), 0.5, np.float32)
  x[:, 0, 1, 0] = 0.9  # The class 0, by far.
  y = np.zeros(6, np.int32)
  model = models.bind(_overflows, w)
  table = {"pgd": attacks.pgd(_BALL, num_steps=20, step_size=0.05)}
  table["random"] = square(_BALL, num_queries=40)
  result = _run(table, model, x, y)
  assert result.record.success.all()
  assert result.robust_accuracy["random"] == 0.0


def test_weights_that_are_no_numbers_leave_no_accuracy():
  model = models.bind(_rounded, np.full((25, 4), np.nan, np.float32))
  with pytest.warns(UserWarning, match="NaN or infinite"):
    record = engine.craft(
      _TABLE["weak"], model, _KEY, _X, _Y, slots=8, progress=False
    )
  assert record.success.all()
  assert evaluation.accuracy(model, _KEY, _X, _Y) == 0.0
  result = _run({"weak": _TABLE["weak"]}, model)
  assert set(result.robust_accuracy.values()) == {0.0}
  assert any("not finite for 100.0%" in each for each in result.suspicions)


def test_an_attack_that_leaves_its_ball_is_found_out():
  attack = attacks.pgd(balls.Linf(0.4), num_steps=3, step_size=0.4)
  lying = attack._replace(threat=attack.threat._replace(ball=_BALL))
  result = _run({"lying": lying})
  assert any("of lying left its ball" in each for each in result.suspicions)
  assert evaluation.inside(_BALL, _X, result.record.x_adv).all()
