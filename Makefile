PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed

.PHONY: demo check test test-all clients lint docs clean

demo: $(STAMP)
	$(VENV)/bin/penstock demo

# The tests of one room each, which lie in the folders of tests/; but the tools, which measure and run whole models.
check: lint
	$(VENV)/bin/python -m pytest $(filter-out tests/tools/,$(wildcard tests/*/)) tests/test_tidy.py

test: lint
	$(VENV)/bin/python -m pytest

# Every test on both event loops, a thousand random settings, and all combinations of settings.
test-all: export PENSTOCK_TESTS = all
test-all: test

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
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache
