"""Defences, by kind (see `docs/design.md`): functions, not classes."""
