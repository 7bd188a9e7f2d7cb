"""Strict settings for every test: no silent broadcasting, no baked weights."""

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_captured_constants_warn_bytes", 1_000_000)


def _programs(item):
  """Tests with the same answer share compiled programs."""
  group = item.get_closest_marker("xdist_group")
  return item.path, group and group.args


def pytest_runtest_teardown(item, nextitem):
  """Drops programs that no test needs again.

  Each keeps memory maps, of which a process may have 65,530: some thousands of
  programs later XLA crashes.
  """
  if nextitem is None or _programs(item) != _programs(nextitem):
    jax.clear_caches()
