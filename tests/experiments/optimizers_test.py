import jax.numpy as jnp
import numpy as np
import pytest

from experiments import optimizers


def test_schedules():
  values = {
    name: [float(build(0.4, 100)(step)) for step in (0, 40, 60, 99)]
    for name, build in optimizers.SCHEDULES.items()
  }
  np.testing.assert_allclose(values["constant"], [0.4] * 4, rtol=1e-6)
  np.testing.assert_allclose(
    values["piecewise"], [0.4, 0.4, 0.04, 0.004], rtol=1e-5
  )
  cyclic = [0.0, 0.4, 0.4 * 40 / 60, 0.4 / 60]
  np.testing.assert_allclose(values["cyclic"], cyclic, rtol=1e-5)
  triangular = [0.0, 0.4 * 40 / 50, 0.4 * 40 / 50, 0.4 / 50]
  np.testing.assert_allclose(values["triangular"], triangular, rtol=1e-5)
  cosine = 0.2 * (1 + np.cos(np.pi * np.array([0, 0.4, 0.6, 0.99])))
  np.testing.assert_allclose(values["cosine"], cosine, rtol=1e-4)


@pytest.mark.parametrize("name", list(optimizers.OPTIMIZERS))
def test_optimisers_descend_and_decay(name):
  build = optimizers.OPTIMIZERS[name]
  params = jnp.ones(3)
  optimizer = build(optimizers.SCHEDULES["constant"](0.1, 10), 0.9, 0.0)
  updates, _ = optimizer.update(params, optimizer.init(params), params)
  assert np.all(np.asarray(updates) < 0)
  decaying = build(optimizers.SCHEDULES["constant"](0.1, 10), 0.9, 0.5)
  updates, _ = decaying.update(0 * params, decaying.init(params), params)
  assert np.all(np.asarray(updates) < 0)


@pytest.mark.parametrize("name", ["sgd", "nesterov"])
def test_sgd_is_that_of_pytorch(name):
  """One step of torch.optim.SGD, and a second, by hand."""
  optimizer = optimizers.OPTIMIZERS[name](lambda step: 0.1, 0.9, 0.01)
  params, trace = jnp.asarray(2.0), 0.0
  state, expected = optimizer.init(params), 2.0
  for grad in (1.0, -3.0):
    updates, state = optimizer.update(jnp.asarray(grad), state, params)
    params = params + updates
    decayed = grad + 0.01 * expected
    trace = 0.9 * trace + decayed
    plain = name == "sgd"
    expected -= 0.1 * (trace if plain else decayed + 0.9 * trace)
  np.testing.assert_allclose(params, expected, rtol=1e-5)
