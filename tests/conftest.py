"""Strict settings for every test: no silent broadcasting, no baked weights."""

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_captured_constants_warn_bytes", 1_000_000)


def pytest_runtest_teardown(item, nextitem):
  """Drops the programs of a file of tests.

  Each keeps memory maps, of which a process may have 65,530: some thousands of
  programs later XLA crashes.
  """
  if nextitem is None or item.path != nextitem.path:
    jax.clear_caches()
