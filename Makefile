# The first command of a fresh checkout does all set-up by itself: `make demo` or `make test`.
#
# Set-up makes .venv (with uv where there is one, else with Python's own venv) and installs the package in it, once,
# and again when pyproject.toml changes. Variables:
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu    PyTorch without CUDA: a much smaller download
#   make demo PYTHON=/path/to/python3.12                          another Python than the first suitable one found
#   make demo DEMO=folder                                         where the demo writes

VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
DEV_GROUPS := --group test --group lint --group docs
DEMO ?= demo
PYTHON ?=
TORCH_INDEX ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow lint types imports docs check clean

help:
	@echo "make demo       train, predict and evaluate on simulated data; tables and figures go to $(DEMO)/"
	@echo "make test       the fast tests"
	@echo "make test-slow  the slow tests"
	@echo "make lint       ruff: rules and format"
	@echo "make types      mypy, strict"
	@echo "make imports    which part may import which"
	@echo "make docs       the documentation, in docs/_build/html"
	@echo "make check      all of these but the demo"
	@echo "make setup      .venv only"
	@echo "make clean      remove caches and built documentation; .venv and $(DEMO)/ stay"

setup: $(STAMP)

$(PY):
	@set -e; \
	if [ -z "$(PYTHON)" ] && command -v uv >/dev/null 2>&1; then \
	    uv venv --python '>=3.12' $(VENV); \
	else \
	    found=""; \
	    for candidate in $(or $(PYTHON),python3.12 python3.13 python3 python3.14 python); do \
	        if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 12))' >/dev/null 2>&1; then \
	            found="$$candidate"; break; \
	        fi; \
	    done; \
	    if [ -z "$$found" ]; then \
	        echo "error: perturbdiff needs Python 3.12 or newer, and $(or $(PYTHON),no python3 on the PATH) is" \
	             "$(if $(PYTHON),not that,new enough); install one, install uv, or say where it is:" \
	             "make demo PYTHON=/path/to/python3.12." >&2; \
	        exit 1; \
	    fi; \
	    "$$found" -m venv $(VENV) || { \
	        rm -rf $(VENV); \
	        echo "error: $$found cannot make a virtual environment; install its venv module (on Debian and Ubuntu" \
	             "the package python3-venv), or install uv." >&2; \
	        exit 1; \
	    }; \
	fi

$(STAMP): pyproject.toml | $(PY)
	@set -e; \
	if command -v uv >/dev/null 2>&1; then \
	    install="uv pip install --python $(PY)"; \
	else \
	    $(PY) -m pip install --quiet --upgrade "pip>=25.1"; \
	    install="$(PY) -m pip install --quiet"; \
	fi; \
	echo "installing perturbdiff into $(VENV); the first time this takes some minutes"; \
	if [ -n "$(TORCH_INDEX)" ]; then $$install torch --index-url "$(TORCH_INDEX)"; fi; \
	$$install --editable . $(DEV_GROUPS)
	@touch $@

demo: $(STAMP)
	$(VENV)/bin/perturbdiff demo --out $(DEMO)

test: $(STAMP)
	$(PY) -m pytest --numprocesses auto --dist loadfile

# pytest exits with 5 where no test is selected
test-slow: $(STAMP)
	$(PY) -m pytest -m "slow and not gpu" || [ $$? -eq 5 ]

lint: $(STAMP)
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check

types: $(STAMP)
	$(VENV)/bin/mypy

imports: $(STAMP)
	$(VENV)/bin/lint-imports

docs: $(STAMP)
	$(PY) -m sphinx -W --keep-going -b html docs docs/_build/html

check: test test-slow lint types imports docs

clean:
	rm -rf docs/_build build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests docs benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
