"""Strict settings for every test: no silent broadcasting, no baked weights."""

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_captured_constants_warn_bytes", 1_000_000)
