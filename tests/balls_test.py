"""Laws of projections, directions and samples; brute force in the plane."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxadv import balls

_KINDS = [balls.Linf, balls.L2, balls.L1]
_ORDER = {balls.Linf: np.inf, balls.L2: 2, balls.L1: 1}
_MASK = np.arange(40) % 3 > 0


def _points(num_points=60, size=40, scale=1.0):
  rng = np.random.default_rng(0)
  lengths = scale * rng.uniform(0.05, 3, (num_points, 1))
  return (lengths * rng.normal(size=(num_points, size))).astype(np.float32)


def _each(function, *arguments):
  return np.asarray(jax.jit(jax.vmap(function))(*arguments))


def _some_balls():
  return [
    balls.Linf(0.7),
    balls.L2(2.0),
    balls.L1(6.0),
    balls.Masked(balls.L1(6.0), jnp.asarray(_MASK)),
  ]


def test_structures_of_different_balls_are_different():
  kinds = [*_KINDS, balls.L0]
  trees = [jax.tree.structure(kind(1.0)) for kind in kinds]
  trees += [jax.tree.structure(balls.Masked(kind(1.0), 0)) for kind in kinds]
  for tree in trees:
    assert sum(tree == other for other in trees) == 1
  # And a new radius is the same structure.
  assert jax.tree.structure(balls.L2(2.0)) == trees[1]


@pytest.mark.parametrize("ball", _some_balls(), ids=repr)
def test_projection_is_inside_idempotent_and_non_expansive(ball):
  points = _points()
  projected = _each(ball.project, points)
  norms = _each(ball.norm, projected)
  assert (norms <= ball.eps * (1 + 1e-5)).all()
  assert (norms > 0.99 * ball.eps).sum() > 10  # The test does project.
  np.testing.assert_allclose(
    _each(ball.project, projected), projected, atol=2e-6
  )
  before = np.linalg.norm(points[:-1] - points[1:], axis=1)
  after = np.linalg.norm(projected[:-1] - projected[1:], axis=1)
  assert (after <= before + 1e-5).all()


@pytest.mark.parametrize("kind", _KINDS)
def test_what_is_inside_stays_as_it_is(kind):
  points = _points(scale=0.01)
  np.testing.assert_array_equal(_each(kind(30.0).project, points), points)


def _candidates(kind, eps, low, high):
  """A fine grid of the box and the ball's boundary, where feasible."""
  axes = [np.linspace(low[i], high[i], 161) for i in range(2)]
  grid = np.stack(np.meshgrid(*axes), -1).reshape(-1, 2)
  angle = np.linspace(0, 2 * np.pi, 4001)
  circle = np.stack([np.cos(angle), np.sin(angle)], 1)
  order = _ORDER[kind]
  boundary = eps * circle / np.linalg.norm(circle, order, axis=1)[:, None]
  # Edges of the box, cut where they leave the ball.
  points = np.concatenate([grid, boundary, np.clip(boundary, low, high)])
  inside = np.linalg.norm(points, order, axis=1) <= eps * (1 + 1e-9)
  in_box = ((points >= low - 1e-9) & (points <= high + 1e-9)).all(axis=1)
  return points[inside & in_box]


@pytest.mark.parametrize("boxed", [False, True])
@pytest.mark.parametrize("kind", _KINDS)
def test_projection_equals_brute_force_in_the_plane(kind, boxed):
  rng = np.random.default_rng(1)
  points = rng.uniform(-2, 2, (40, 2)).astype(np.float32)
  size = 0.6 if boxed else 5.0
  low = -rng.uniform(0, size, (40, 2)).astype(np.float32)
  high = rng.uniform(0, size, (40, 2)).astype(np.float32)
  ball = kind(0.8)
  if boxed:
    projected = _each(ball.project_box, points, low, high)
    assert ((projected >= low) & (projected <= high)).all()
  else:
    projected = _each(ball.project, points)
    low, high = low * 0 - 2, high * 0 + 2
  norms = np.linalg.norm(projected, _ORDER[kind], axis=1)
  assert (norms <= 0.8 + 1e-6).all()
  if boxed and kind is balls.L2:
    return  # Feasible by contract, not nearest.
  for i, point in enumerate(points):
    candidates = _candidates(kind, 0.8, low[i], high[i])
    nearest = np.linalg.norm(candidates - point, axis=1).min()
    assert np.linalg.norm(projected[i] - point) <= nearest + 1e-5
    assert np.linalg.norm(projected[i] - point) >= nearest - 2e-2


@pytest.mark.parametrize("ball", _some_balls()[:3], ids=repr)
def test_steepest_attains_the_dual_norm(ball):
  grads = _points()
  directions = _each(ball.steepest, grads)
  dual = {np.inf: 1, 2: 2, 1: np.inf}[_ORDER[type(ball)]]
  gains = (grads * directions).sum(axis=1)
  np.testing.assert_allclose(
    gains, np.linalg.norm(grads, dual, axis=1), rtol=1e-5
  )
  np.testing.assert_allclose(_each(ball.norm, directions), 1.0, rtol=1e-5)


def test_steepest_l1_shares_its_step_among_the_top_fraction():
  grads = _points()
  gains = (grads * _each(balls.L1(1.0, 0.25).steepest, grads)).sum(axis=1)
  top = np.sort(np.abs(grads), axis=1)[:, -10:]
  np.testing.assert_allclose(gains, top.mean(axis=1), rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize("ball", _some_balls(), ids=repr)
def test_direction_does_not_depend_on_the_size_of_the_gradient(ball, scale):
  grads = _points(8)
  np.testing.assert_allclose(
    _each(ball.steepest, np.float32(scale) * grads),
    _each(ball.steepest, grads),
    rtol=1e-4,
    atol=1e-6,
  )


@pytest.mark.parametrize("ball", _some_balls(), ids=repr)
def test_everything_is_safe_at_zero(ball):
  zero = jnp.zeros(40)
  np.testing.assert_array_equal(ball.project(zero), zero)
  np.testing.assert_array_equal(ball.project_box(zero, zero, zero), zero)
  np.testing.assert_array_equal(ball.steepest(zero), zero)
  assert ball.norm(zero) == 0


@pytest.mark.parametrize("kind", _KINDS)
def test_a_ball_of_radius_zero_is_a_point(kind):
  ball, points = kind(0.0), _points(8)
  np.testing.assert_array_equal(_each(ball.project, points), 0 * points)
  sample = ball.sample(jax.random.key(0), jnp.zeros(40))
  np.testing.assert_array_equal(sample, np.zeros(40))


@pytest.mark.parametrize("kind", _KINDS)
def test_samples_are_uniform_in_the_ball(kind):
  size, eps = 5, 0.3
  keys = jax.random.split(jax.random.key(1), 3000)
  like = jnp.zeros((size, 1))
  samples = _each(lambda key: kind(eps).sample(key, like), keys)
  assert samples.shape == (3000, size, 1)
  samples = samples[..., 0] / eps
  radii = np.linalg.norm(samples, _ORDER[kind], axis=1)
  assert radii.max() <= 1 + 1e-6
  # A uniform point's radius has the law u^(1/d) in every norm.
  assert scipy.stats.kstest(radii**size, "uniform").pvalue > 1e-3
  marginal = {
    balls.Linf: scipy.stats.uniform(),
    balls.L2: scipy.stats.beta(0.5, (size + 1) / 2),
    balls.L1: scipy.stats.beta(1, size),
  }[kind]
  for i in (0, size - 1):
    part = np.abs(samples[:, i])
    part = part**2 if kind is balls.L2 else part
    assert scipy.stats.kstest(part, marginal.cdf).pvalue > 1e-3
    assert abs((samples[:, i] > 0).mean() - 0.5) < 0.05


def test_masked_moves_nothing_outside_of_the_mask():
  mask = np.zeros((4, 4, 1), bool)
  mask[1:3, 1:3] = True
  ball = balls.Masked(balls.L2(0.5), jnp.asarray(mask))
  delta = jnp.asarray(_points(1, 48).reshape(4, 4, 3))
  free = np.broadcast_to(mask, delta.shape)
  for moved in (
    ball.project(delta),
    ball.project_box(delta, -abs(delta), abs(delta)),
    ball.steepest(delta),
    ball.sample(jax.random.key(0), delta),
  ):
    assert (np.asarray(moved)[~free] == 0).all()
    assert (np.asarray(moved)[free] != 0).all()
  kept = np.where(free, delta, 0)
  np.testing.assert_allclose(
    ball.project(delta), 0.5 * kept / np.linalg.norm(kept), rtol=1e-5
  )
  assert ball.norm(delta) == np.inf
  np.testing.assert_allclose(ball.norm(kept), np.linalg.norm(kept), rtol=1e-5)
  assert ball.eps == 0.5


@pytest.mark.parametrize("eps", [-0.1, float("nan"), np.float32(-1), -1])
@pytest.mark.parametrize("kind", _KINDS)
def test_refuses_a_radius_that_is_none(kind, eps):
  with pytest.raises(ValueError, match="eps must be a radius"):
    kind(eps)


@pytest.mark.parametrize("kind", _KINDS)
def test_a_new_radius_compiles_nothing(kind):
  traces = []

  @jax.jit
  def project(ball, delta):
    traces.append(ball)
    return ball.project(delta)

  delta = jnp.ones(4)
  small, large = project(kind(0.1), delta), project(kind(0.2), delta)
  assert len(traces) == 1
  np.testing.assert_allclose(2 * small, large, rtol=1e-5)


@pytest.mark.parametrize("ball", _some_balls(), ids=repr)
def test_directions_have_length_one_in_float64(ball):
  grads = np.random.default_rng(0).normal(size=(60, 40))
  with jax.enable_x64(True):
    directions = jax.jit(jax.vmap(ball.steepest))(grads)
    assert directions.dtype == jnp.float64
    norms = _each(ball.norm, directions)
  np.testing.assert_allclose(norms, 1.0, rtol=1e-12)


@pytest.mark.parametrize("kind", [*_KINDS, balls.L0])
def test_answers_have_the_type_of_the_perturbation(kind):
  with jax.enable_x64(True):
    # NumPy's numbers are float64, Python's would take any type.
    ball, end = kind(np.float64(0.5)), np.float64(1.0)
    ball = balls.Masked(ball, jnp.asarray(True))
    delta = jnp.ones(4, jnp.float32)
    for answer in (
      ball.project(delta),
      ball.project_box(delta, -end, end),
      ball.steepest(delta),
      ball.sample(jax.random.key(0), delta),
    ):
      assert answer.dtype == jnp.float32


def test_resized_changes_the_radius_alone():
  for kind in (*_KINDS, balls.L0):
    assert kind(0.5).resized(2.0) == kind(2.0)
  assert balls.L1(0.5, 0.2).resized(2.0) == balls.L1(2.0, 0.2)
  masked = balls.Masked(balls.L1(0.5, 0.2), jnp.asarray(_MASK)).resized(2.0)
  assert masked.ball == balls.L1(2.0, 0.2)
  np.testing.assert_array_equal(masked.mask, _MASK)
  assert jax.jit(lambda eps: balls.L2(0.1).resized(eps))(3.0).eps == 3
  with pytest.raises(ValueError, match="eps must be a radius"):
    balls.L2(0.5).resized(-1.0)


@pytest.mark.parametrize("kind", [*_KINDS, balls.L0])
def test_refuses_a_box_without_the_clean_input(kind):
  delta, zero = jnp.asarray([0.1, 0.2]), jnp.zeros(2)
  for ball in (kind(1.0), balls.Masked(kind(1.0), jnp.asarray(True))):
    with pytest.raises(ValueError, match=r"clean input.*low reaches 0\.1"):
      ball.project_box(delta, zero + jnp.asarray([0.1, -0.1]), zero + 1)
    with pytest.raises(ValueError, match=r"clean input.*high reaches -0\.2"):
      ball.project_box(delta, -1.0, -0.2)
    # Where nothing is concrete it is the caller's business.
    jax.jit(ball.project_box)(delta, zero + 0.1, zero + 1)


@pytest.mark.parametrize("kind", [*_KINDS, balls.L0])
def test_refuses_a_radius_in_quotes(kind):
  with pytest.raises(TypeError, match="eps='8/255': write 8 / 255"):
    kind("8/255")
