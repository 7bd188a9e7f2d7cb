"""Agreement with what other libraries recorded on the same networks."""

import jax
import numpy as np
import pytest

from benchmarks import recorded
from jaxadv import attacks, balls, engine, evaluation, norms
from tests import golden

pytestmark = golden.needed

_KEY = jax.random.key(0)


@pytest.mark.parametrize("name", ["nat", "adv"])
def test_the_networks_are_those_of_the_record(name):
  x, labels = golden.examples(100)
  recorded = golden.results(name)
  wrong = evaluation.fooled(golden.net(name), _KEY, x, labels, batch_size=100)
  np.testing.assert_array_equal(~wrong, recorded["clean_correct"][:100])
  keys = jax.random.split(_KEY, 100)
  np.testing.assert_allclose(
    golden.net(name)(keys, x), recorded["logits"][:100], atol=1e-3
  )


def _pgd_40(name: str, num_examples: int) -> np.ndarray:
  """Madry's MNIST setting; whether each example was fooled."""
  x, labels = golden.examples(num_examples)
  ball = balls.Linf(0.3)
  record = engine.craft(
    attacks.pgd(ball, num_steps=40, step_size=0.01),
    golden.net(name),
    _KEY,
    x,
    labels,
    slots=64,
    progress=False,
  )
  assert evaluation.inside(ball, x, record.x_adv).all()
  return record.success


def test_pgd_on_the_hardened_network():
  """APGD-CE with 100 steps is stronger on every example.

  PGD-40 fools 14 of these 100, the run whose 512 agree with four libraries.
  """
  fooled = _pgd_40("adv", 100)
  apgd = golden.results("adv", "autoattack-Linf-0.3-apgd-ce")["success"][:100]
  assert (fooled & ~apgd).sum() <= 1
  assert 12 <= fooled.sum() <= 16 < apgd.sum()


def test_pgd_on_the_undefended_network_leaves_nothing():
  assert _pgd_40("nat", 100).all()


@pytest.mark.slow
def test_pgd_agrees_with_four_libraries():
  """Foolbox 0.820, ART 0.824, CleverHans 0.820, torchattacks 0.830-0.838."""
  robust = 1 - _pgd_40("adv", 512).mean()
  assert 0.820 - 0.015 <= robust <= 0.838 + 0.015
  assert _pgd_40("nat", 512).mean() == 1.0


def _compared(net: str, name: str, num_examples: int) -> tuple[float, float]:
  """The scores of a recorded run on the first examples: ours and theirs."""
  run, (x, labels) = recorded.RUNS[name], golden.examples(num_examples)
  theirs = golden.results(net, name)
  right = golden.results(net)["clean_correct"][:num_examples]
  record = engine.craft(
    run.attack_fn(), golden.net(net), _KEY, x, labels, progress=False
  )
  success = recorded.broken(run, x, record)
  distance = run.norm or "linf"
  return (
    recorded.score(run, right, success, record.distance[distance]),
    recorded.score(
      run,
      right,
      theirs["success"][:num_examples],
      theirs[distance][:num_examples],
    ),
  )


# 9,000 gradients per image.
_LONG = ("cw-l2-9x1000",)
_PAIRS = [
  pytest.param(net, name, id=f"{net}-{name}")
  for name, run in recorded.RUNS.items()
  for net in (("adv", "nat") if run.undefended else ("adv",))
]


@pytest.mark.parametrize(("net", "name"), _PAIRS)
def test_agrees_with_the_recorded_run(net, name):
  """On 100 images; two of them may fall differently by chance."""
  ours, theirs = _compared(net, name, 15 if name in _LONG else 100)
  if recorded.RUNS[name].ball is None:
    assert ours <= recorded.DISTANCE_FACTOR * theirs
  else:
    assert ours <= theirs + 0.02


@pytest.mark.parametrize(
  ("norm", "name", "run"),
  [(norms.L2, "l2", "alma-l2-1000"), (norms.Linf, "linf", "fmn-linf-1000")],
)
def test_brendel_bethge_on_the_hardened_network(norm, name, run):
  """A tenth of the steps of what was recorded: the walks arrive in time."""
  x, labels = golden.examples(100)
  attack = attacks.brendel_bethge(norm, num_steps=100)
  record = engine.craft(
    attack, golden.net("adv"), _KEY, x, labels, slots=100, progress=False
  )
  right = golden.results("adv")["clean_correct"][:100]
  ours = np.median(record.distance[name][right])
  theirs = np.median(golden.results("adv", run)[name][:100][right])
  assert record.success.all()
  assert ours <= recorded.DISTANCE_FACTOR * theirs


@pytest.mark.slow
@pytest.mark.parametrize("net", ["adv", "nat"])
def test_carlini_and_wagner_on_more_images(net):
  ours, theirs = _compared(net, "cw-l2-9x1000", 100)
  assert ours <= recorded.DISTANCE_FACTOR * theirs
