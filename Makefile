# `make demo`, `make test` and `make lint` need Python >= 3.11 with pip; the
# first of them makes .venv. Another Python: `make demo PYTHON=python3.13`.
PYTHON ?= python3
STAMP := .venv/.installed
BIN := .venv/bin

.PHONY: demo test lint clean

# Trains two networks, attacks both, prints a table and writes a report.
demo: $(STAMP)
	$(BIN)/python -m experiments.demo

test: $(STAMP)
	$(BIN)/pytest -q -n auto --dist loadgroup

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# Caches and packages; .venv and the results in runs/ stay.
clean:
	rm -rf .mypy_cache .pytest_cache .ruff_cache build dist
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python >= 3.11 is needed: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@
