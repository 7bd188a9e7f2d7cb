"""A trained network and an assessment of it, made once for all tests."""

import jax
import optax
import pytest

from experiments import assessment, common, fitting, networks, victims
from jaxadv import data, train_state
from jaxadv.defences import training
from tests.experiments import assessment_cases as cases


def _step_fn(module):
  return lambda state, batch: training.train_step(
    state,
    batch,
    train_apply=train_state.train_apply(module),
    robust_loss=training.standard,
  )


def _trained(place, seed):
  module = networks.build_model("seed_network", "digits", 10)
  examples = data.load("digits").train
  state = train_state.create(
    module,
    optax.adam(0.05),
    jax.random.key(seed),
    data.batch(examples, [0])["image"],
  )
  fitting.fit(
    place,
    state,
    _step_fn(module),
    lambda variables: {"score": 0.0},
    data.first(examples, 960),
    fitting.Schedule(num_epochs=2, batch_size=64, seed=0),
  )
  info = {"dataset": "digits", "model": "seed_network"}
  info |= {"num_classes": 10, "image_shape": [8, 8, 1]}
  common.write_json(place / "model.json", info)
  return place


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory):
  """A network after 30 steps: mostly right, and not robust."""
  return _trained(tmp_path_factory.mktemp("model"), seed=0)


@pytest.fixture(scope="session")
def other_model_dir(tmp_path_factory):
  """The same network from other weights."""
  return _trained(tmp_path_factory.mktemp("other"), seed=1)


@pytest.fixture(scope="session")
def victim(model_dir):
  return victims.load(model_dir, num_examples=20)


@pytest.fixture(scope="session")
def whole(victim, tmp_path_factory):
  """Where an assessment ran without a stop, and what it found."""
  place = tmp_path_factory.mktemp("whole")
  return place, assessment.assess(victim, cases.PLAN, place)
