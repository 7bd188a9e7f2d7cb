"""Models that may reject an input: what fools them, and what cannot tell."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import assessment, victims
from jaxadv import criteria, models
from jaxadv.defences import null_class
from tests.experiments import assessment_cases as cases


def _victim() -> victims.Victim:
  images = np.full((4, 4, 4, 1), 0.45, np.float32)
  weights = np.array([-1.0, 0.0, 1.0], np.float32)
  return victims.Victim(
    name="rejecting",
    dataset="none",
    split="test",
    logits_fn=models.bind(_scores, weights),
    images=images,
    labels=np.zeros(4, np.int32),
    class_names=("dark", "bright"),
    loss_fn=null_class.wrong_margin,
    criterion=null_class.fooled,
  )


def _scores(weights, x):
  """Above a brightness of 0.5 null, below it the class 0; never the class 1."""
  mean = x.reshape(len(x), -1).mean(axis=1)[:, None] - 0.5
  return mean * weights[None] + jnp.array([[0.0, -9.0, 0.0]])


def test_a_rejected_input_is_no_success(tmp_path):
  plan = cases.PLAN._replace(attacks=("pgd",), radii=())
  outcome = assessment.assess(_victim(), plan, tmp_path / "null")
  assert not outcome.clean_wrong.any()
  assert not outcome.attacked["pgd"].fooled.any()
  wrong = _victim()._replace(criterion=criteria.misclassified)
  outcome = assessment.assess(wrong, plan, tmp_path / "wrong")
  assert outcome.attacked["pgd"].fooled.all()


def test_attacks_that_stop_at_rejection_are_refused(tmp_path):
  plan = cases.PLAN._replace(attacks=("pgd", "autoattack", "fmn"), radii=())
  with pytest.raises(ValueError, match="autoattack,fmn: they stop at"):
    assessment.assess(_victim(), plan, tmp_path)
