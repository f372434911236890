# Everything that a fresh machine needs is Python >= 3.11 and make: each target makes its environment first.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
STAMP   = $(VENV)/.installed

.PHONY: demo test lint types imports wheel-test bench figures clean
.DEFAULT_GOAL := demo

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: $(STAMP)           ## NeuStream and Clockwork on simulated GPUs, beside what was measured on real ones
	$(BIN)/servetwin demo

test: $(STAMP)           ## the test suite (no torch needed)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'not slow and not gpu'

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

imports: $(STAMP)        ## the arrows between packages
	$(BIN)/lint-imports

wheel-test: $(STAMP)     ## tests against the built wheel, from outside the checkout
	.ci/wheel-test $(BIN)/python

bench: $(STAMP)
	$(BIN)/python -m servetwin.experiments.bench

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache runs
