"""Adversarial attacks and defences as pure JAX functions."""
