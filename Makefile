PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
PYTEST := $(VENV)/bin/python -m pytest
# What many programs import, each would compile anew where containers set this.
export PYTHONDONTWRITEBYTECODE :=
# A worker for each of two cores. A file's tests stay together, in their order: what they share is made once.
WORKERS := -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo check test test-all clients lint docs clean

demo: $(STAMP)
	$(VENV)/bin/penstock demo

# The tests of one room each, which lie in the folders of tests/; but the tools, which measure and run whole models.
check: lint
	$(PYTEST) $(WORKERS) $(filter-out tests/tools/,$(wildcard tests/*/)) tests/test_tidy.py

test: lint
	$(PYTEST) $(WORKERS)

# Every test on both event loops, a thousand random settings, and all combinations of settings; then what measures, alone.
test-all: export PENSTOCK_TESTS = all
test-all: lint
	$(PYTEST) $(WORKERS) -m 'not cuda and not measures'
	$(PYTEST) -m 'not cuda and measures'

# openai, langchain-openai, litellm, lm-eval and schemathesis against `penstock serve`, each in an environment of its own.
clients: $(STAMP)
	$(VENV)/bin/python tests/clients/run.py

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

docs: $(STAMP)
	$(VENV)/bin/python .github/reference.py build/docs

$(STAMP): pyproject.toml
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	# Python compiles what it imports; pip would compile all of torch, ray and transformers, which takes longer.
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile -e '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache
