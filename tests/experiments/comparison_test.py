"""Models side by side, and the signs that one hides its gradients."""

import json

import jax
import numpy as np
import pytest

from experiments import (
  assessment,
  attack_table,
  common,
  comparison,
  evaluation_report,
  victims,
)
from jaxadv import attacks, balls, data, losses, models
from jaxadv.report import page

_PLAN = assessment.Plan(
  attacks=comparison.ATTACKS,
  ball=balls.Linf,
  eps=0.1,
  radii=(),
  settings=attack_table.Settings(
    num_steps=5, step_size=None, num_restarts=1, num_classes=10
  ),
  seed=3,
  slots=32,
)


def _short(ball, settings):
  """Instead of AutoAttack: what no scale of the logits can hide from."""
  del settings
  return {
    "dlr": attacks.pgd(
      ball, num_steps=5, step_size=ball.eps / 2, loss_fn=losses.dlr
    )
  }


@pytest.fixture(autouse=True)
def short(monkeypatch):
  monkeypatch.setitem(attack_table.CASCADES, "autoattack", _short)


def _linear(variables, x):
  return x.reshape(len(x), -1) @ variables["w"] + variables["b"][None]


def _nearest_mean(scale, first=0):
  """The class of the nearest mean is a linear model; `scale` changes none."""
  digits = data.load("digits")
  images, labels = (part[first:] for part in data.unit(digits.train))
  flat = images.reshape(len(images), -1)
  means = np.stack([flat[labels == c].mean(axis=0) for c in range(10)])
  variables = {"w": 2 * scale * means.T, "b": -scale * (means**2).sum(axis=1)}
  test_images, test_labels = data.unit(digits.test)
  return victims.Victim(
    name=f"times{scale:g}",
    dataset="digits",
    split="test",
    logits_fn=models.bind(_linear, jax.tree.map(np.float32, variables)),
    images=test_images[:60],
    labels=test_labels[:60],
    class_names=digits.class_names,
  )


@pytest.fixture(scope="module")
def source():
  return _nearest_mean(1.0, first=500)


@pytest.fixture(scope="module")
def transfer(source, tmp_path_factory):
  place = tmp_path_factory.mktemp("transfer")
  return comparison.craft(source, _PLAN, place)


_TRAINED = {"defence": "none", "epochs": 3, "seconds_per_epoch": 0.25}


def _numbers(victim, transfer, workdir):
  outcome = assessment.assess(victim, _PLAN, workdir)
  return outcome, comparison.numbers(outcome, "linf", transfer, _TRAINED)


@pytest.fixture
def plain_and_masked(transfer, tmp_path):
  return {
    victim.name: _numbers(victim, transfer, tmp_path / victim.name)
    for victim in (_nearest_mean(1.0), _nearest_mean(2.0**17))
  }


def test_the_whole_budget_is_spent_on_the_source(source, transfer):
  moved = np.abs(transfer.x_adv - source.images).max(axis=(1, 2, 3))
  np.testing.assert_allclose(moved, 0.1, rtol=1e-5)
  assert transfer.source == "times1"


def test_a_scale_hides_gradients_and_is_shown_to(plain_and_masked):
  """The same decisions, so the same robustness; PGD alone is deceived."""
  (_, plain), (_, masked) = plain_and_masked.values()
  assert masked["clean_accuracy"] == plain["clean_accuracy"]
  for name in ("transfer", "worst_case"):
    assert masked[name] == plain[name]
  rates = [
    {k: v["robust_accuracy"] for k, v in each["attacks"].items()}
    for each in (plain, masked)
  ]
  assert rates[1]["autoattack"] == rates[0]["autoattack"]
  assert rates[1]["pgd"] == masked["clean_accuracy"] > rates[0]["pgd"] + 0.1
  assert plain["warnings"] == {}
  assert list(masked["warnings"]) == [
    *("PGD fails", "transfer wins", "AA warns")
  ]
  assert "cross-entropy is zero for" in masked["warnings"]["AA warns"]


def test_transfer_is_judged_here_and_counts_in_the_worst_case(
  plain_and_masked, transfer
):
  outcome, numbers = plain_and_masked["times1"]
  predicted = outcome.victim.logits_fn(None, transfer.x_adv).argmax(axis=-1)
  robust = (predicted == outcome.victim.labels) & ~outcome.clean_wrong
  assert numbers["transfer"]["robust_accuracy"] == pytest.approx(robust.mean())
  alone = outcome._replace(
    attacked={
      name: attacked._replace(fooled=np.zeros_like(attacked.fooled))
      for name, attacked in outcome.attacked.items()
    }
  )
  numbers = comparison.numbers(alone, "linf", transfer, _TRAINED)
  assert numbers["worst_case"]["robust_accuracy"] == pytest.approx(
    robust.mean()
  )
  # Inputs that are outside the ball have not fooled anybody.
  far = transfer._replace(x_adv=np.ones_like(transfer.x_adv))
  numbers = comparison.numbers(alone, "linf", far, _TRAINED)
  assert numbers["transfer"]["robust_accuracy"] == numbers["clean_accuracy"]
  assert comparison.numbers(alone, "linf", None, _TRAINED)["transfer"] is None


def _found(fgsm, pgd, auto, transfer, suspicions=()):
  rates = {"fgsm": fgsm, "pgd": pgd, "autoattack": auto}
  found = {
    "attacks": {name: {"robust_accuracy": r} for name, r in rates.items()}
  }
  found["attacks"]["autoattack"]["suspicions"] = list(suspicions)
  rate = {"source": "other", "robust_accuracy": transfer}
  return found | {"transfer": None if transfer is None else rate}


@pytest.mark.parametrize(
  ("found", "signs"),
  [
    (_found(0.6, 0.5, 0.41, 0.9), []),
    (_found(0.01, 0.0, 0.0, None), []),
    (_found(0.6, 0.5, 0.39, 0.9), ["PGD fails"]),
    (_found(0.49, 0.5, 0.48, 0.49), []),
    (_found(0.4, 0.5, 0.48, 0.9), ["FGSM wins"]),
    (_found(0.6, 0.5, 0.48, 0.4), ["transfer wins"]),
    (_found(0.6, 0.5, 0.48, 0.9, ["a", "b"]), ["AA warns"]),
  ],
)
def test_warnings(found, signs):
  assert list(comparison.warnings(found)) == signs


def test_table_and_report(plain_and_masked, tmp_path):
  outcomes = {name: each[0] for name, each in plain_and_masked.items()}
  found = {name: each[1] for name, each in plain_and_masked.items()}
  found["times1"] |= {"transfer": None}
  found["times1"]["training"] = dict.fromkeys(_TRAINED)
  found = json.loads(json.dumps(found, allow_nan=False))
  table = comparison.table(found)
  plain, masked = (
    dict(zip(table.columns, row, strict=True)) for row in table.rows
  )
  assert plain["transfer"] is plain["epochs"] is plain["s/epoch"] is None
  assert plain["warnings"] is None
  assert masked["warnings"].startswith("PGD fails, transfer wins")
  assert masked["epochs"] == 3 and masked["s/epoch"] == 0.25
  assert masked["clean"] == plain["clean"]
  assert "WARNING times131072, PGD fails: PGD leaves " in table.note
  assert "whole budget on times1." in table.note and "null" not in table.note
  found["times1"]["training"]["defence"] = "null_class"
  found["times1"]["attacks"]["pgd"]["num_outside"] = 1
  note = comparison.table(found).note
  assert "times1 may answer null" in note and "ERROR times1: pgd left" in note
  path = tmp_path / "report.html"
  evaluation_report.write(
    path, "Two", outcomes, found, opening=[page.Section("First", "", [table])]
  )
  text = path.read_text()
  assert text.index("First") < text.index("Accuracy under attack")
  assert "transfer wins" in text


def test_what_a_training_says(tmp_path):
  assert set(comparison.training(tmp_path).values()) == {None}
  common.write_json(tmp_path / "model.json", {"defence": "pgd", "model": "mlp"})
  results = {"epochs": 7, "seconds_per_epoch": 2.5, "steps": 70}
  common.write_json(tmp_path / "results.json", results)
  assert comparison.training(tmp_path) == {
    **{"defence": "pgd", "epochs": 7, "seconds_per_epoch": 2.5}
  }
