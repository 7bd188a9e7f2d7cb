"""The windows of Square Attack: their shapes, places and norms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxadv import balls
from jaxadv.attacks import bumps, square_moves

KINDS = [balls.Linf(0.3), balls.L2(1.5), balls.L1(4.0)]
KEY = jax.random.key(0)
# Optimised code would take longer to make than all tests to run.
quickly = functools.partial(
  jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)


def name(value):
  return type(value).__name__ if not isinstance(value, tuple) else str(value)


def images(shape, rows=4, seed=0):
  rng = np.random.default_rng(seed)
  x = np.clip(rng.uniform(-0.3, 1.3, (rows, *shape)), 0, 1)
  return jnp.asarray(x, jnp.float32)


def starts(ball, x):
  """The starts [B, ...]."""
  start = square_moves.moves(ball).start
  keys = jax.random.split(KEY, len(x))
  return jax.vmap(lambda k, x: start(ball, k, -x, 1 - x))(keys, x)


begin = quickly(starts)


@quickly
def wander(ball, x, shares):
  """The start and the proposals after it, each accepted: [steps, B, ...]."""
  propose = square_moves.moves(ball).propose
  keys = jax.random.split(KEY, len(x))

  def advance(delta, step):
    index, share = step
    move = lambda key, delta, x: propose(
      ball, jax.random.fold_in(key, index), delta, share, -x, 1 - x
    )
    delta = jax.vmap(move)(keys, delta, x)
    return delta, delta

  start = starts(ball, x)
  rest = jax.lax.scan(advance, start, (jnp.arange(len(shares)), shares))[1]
  return jnp.concatenate([start[None], rest])


@pytest.mark.parametrize(
  ("share", "height", "width", "linf", "odd"),
  [
    (0.8, 28, 28, 25, 25),
    (0.4, 28, 28, 18, 19),
    (0.8 / 128, 28, 28, 2, 3),
    (0.8 / 512, 28, 28, 1, 3),
    (0.8, 4, 100, 4, 4),
    (0.5, 2, 3, 2, 2),
    (1.0, 9, 9, 9, 9),
  ],
)
def test_sides_of_windows(share, height, width, linf, odd):
  share = jnp.asarray(share)
  assert square_moves.side_linf(share, height, width) == linf
  assert square_moves.side_odd(share, height, width) == odd


def naive_bump(side, order, decay):
  """Ring by ring, as the paper draws it."""

  def half(height):
    bump = np.zeros((height, side))
    for ring in range(side // 2 + 1):
      top, left = height // 2 - ring, side // 2 - ring
      rows = slice(max(top, 0), height // 2 + ring + 1)
      columns = slice(max(left, 0), side // 2 + ring + 1)
      bump[rows, columns] += (ring + 1.0) ** -decay
    return bump / np.linalg.norm(bump.ravel(), order)

  upper = half(side // 2) if side > 1 else np.zeros((0, side))
  bump = np.concatenate([upper, -half(side - side // 2)])
  return bump / np.linalg.norm(bump.ravel(), order)


@pytest.mark.parametrize("order", [1, 2])
def test_bumps(order):
  norm = {1: bumps.L1, 2: bumps.L2}[order]
  make = quickly(
    lambda side, turned: bumps.bump(
      norm, jnp.arange(12) - 2, jnp.arange(11) - 1, side, turned
    )
  )
  for side in (1, 2, 3, 4, 5, 7, 8, 9):
    expected = naive_bump(side, order, 4 if order == 1 else 2)
    for turned in (False, True):
      bump = make(side, turned)[2 : 2 + side, 1 : 1 + side, 0]
      np.testing.assert_allclose(
        bump, expected.T if turned else expected, atol=1e-6
      )


def test_stripes_are_vertical_and_coloured_by_channel():
  x = jnp.full((40, 6, 7, 3), 0.5)
  start = begin(balls.Linf(0.1), x)
  np.testing.assert_array_equal(start, jnp.repeat(start[:, :1], 6, axis=1))
  np.testing.assert_allclose(jnp.abs(start), 0.1, rtol=1e-6)
  assert (jnp.abs(start[:, 0].mean(axis=0)) < 0.08).all()


def test_linf_windows_are_squares_of_their_own_and_reach_everywhere():
  shape = (9, 6, 2)
  ball, x = balls.Linf(0.1), jnp.full((200, *shape), 0.5)
  touched = np.zeros(shape[:2], bool)
  for share, side in [(0.3, 4), (0.02, 1)]:
    before, after = wander(ball, x, jnp.full(1, share))
    differs = np.any(np.asarray(after != before), axis=-1)
    touched |= differs.any(axis=0)
    assert len(np.unique(differs, axis=0)) > 10
    for row in differs:
      rows, columns = np.nonzero(row)
      assert 0 <= np.ptp(rows) < side and 0 <= np.ptp(columns) < side
  assert touched.all()


def test_linf_never_proposes_what_changes_nothing():
  x = images((6, 6, 1), rows=8)
  # Windows of one pixel: half of all signs would be idle.
  moves = wander(balls.Linf(0.3), x, jnp.full(40, 0.01))
  changed = np.any(np.asarray(moves[1:] != moves[:-1]), axis=(2, 3, 4))
  assert changed.all()


@pytest.mark.parametrize(
  ("ball", "shape"),
  [
    *[(ball, (7, 5, 3)) for ball in KINDS],
    (KINDS[1], (1, 2, 2)),
    (KINDS[2], (8, 8, 1)),
  ],
  ids=name,
)
def test_moves_stay_in_ball_and_bounds(ball, shape):
  x = images(shape)
  shares = 0.8 * 0.5 ** (jnp.arange(24) % 9)
  moves = wander(ball, x, shares)
  assert (moves >= -x[None]).all() and (moves <= 1 - x[None]).all()
  sizes = jax.vmap(jax.vmap(ball.norm))(moves)
  assert (sizes <= ball.eps * (1 + 1e-5)).all()  # As the judge.
  assert jnp.isfinite(moves).all()


@pytest.mark.parametrize("ball", KINDS, ids=name)
def test_masks_are_respected(ball):
  x = images((6, 6, 1))
  mask = np.zeros((6, 6, 1), bool)
  mask[2:, 1:4] = True
  moves = wander(balls.Masked(ball, mask), x, jnp.full(12, 0.2))
  assert (moves[:, :, ~mask] == 0).all() and (moves[-1] != 0).any()


@pytest.mark.parametrize("ball", KINDS[1:], ids=name)
def test_exchanges_fill_the_ball_and_clear_a_window(ball):
  # Far from the bounds; the radius is below the width of a bump.
  x, small = jnp.full((50, 12, 12, 1), 0.5), type(ball)(0.1)
  moves = wander(small, x, jnp.full(5, 0.1))
  sizes = jax.vmap(jax.vmap(small.norm))(moves)
  np.testing.assert_allclose(sizes, 0.1, rtol=1e-5)
  before, after = moves[-2], moves[-1]
  changed = np.asarray(after != before)[..., 0]
  # Two windows of 5 x 5 (144 pixels in all), wherever they lie.
  assert (changed.sum(axis=(1, 2)) <= 50).all() and changed.any((1, 2)).all()


def test_l1_takes_from_where_the_perturbation_is():
  ball, rows = balls.L1(4.0), 400
  zero = jnp.zeros((20, 20, 1))
  propose = square_moves.moves(ball).propose
  delta = zero.at[2, 3].set(3.0).at[15, 12].set(-1.0)
  proposals = quickly(
    jax.vmap(lambda key: propose(ball, key, delta, 0.02, zero - 9, zero + 9))
  )(jax.random.split(KEY, rows))
  cleared = np.asarray(proposals == 0) & np.asarray(delta != 0)
  # Windows of 3 x 3 anywhere would hit the two in one of 20 proposals.
  heavy, light = cleared[:, 2, 3].mean(), cleared[:, 15, 12].mean()
  assert abs(heavy - 0.75) < 0.08 and abs(light - 0.25) < 0.08


def test_l1_of_several_channels_takes_from_anywhere():
  zero = jnp.zeros((20, 20, 2))
  # Full: nothing is left to spend, nor anything for the projection to take.
  ball = balls.L1(6.0)
  propose = square_moves.moves(ball).propose
  delta = zero.at[2, 3].set(3.0)
  proposals = quickly(
    jax.vmap(
      lambda key: propose(ball, key, delta, 0.02, zero - 1e5, zero + 1e5)
    )
  )(jax.random.split(KEY, 400))
  assert (np.asarray(proposals)[:, 2, 3] == 0).all(axis=-1).mean() < 0.1


@pytest.mark.parametrize("shape", [(10, 10, 1), (11, 13, 2), (4, 9, 1)])
def test_start_tiles_alternate_in_sign_and_fill_the_ball(shape):
  x = jnp.full((3, *shape), 0.5)
  start = begin(balls.L2(0.2), x)
  np.testing.assert_allclose(
    jnp.linalg.norm(start.reshape(3, -1), axis=1), 0.2, rtol=1e-5
  )
  side = max(min(shape[:2]) // 5, 1)
  tiles = [(n // side, n % side // 2) for n in shape[:2]]
  (rows, top), (columns, left) = tiles
  inner = start[:, top : top + rows * side, left : left + columns * side]
  assert (inner != 0).all()
  assert (start != 0).sum() == inner.size
