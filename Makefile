# make help says what there is. Everything happens in .venv, which "make setup" makes.

PYTHON ?= python3
# Where pip finds torch, if not on the package index. A machine without a GPU saves some GB with
#   make setup TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
# Test processes. The tests of whole swarms start processes of their own.
JOBS ?= 2

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt
NATIVE := setup.py CMakeLists.txt $(shell find csrc -type f 2>/dev/null)

.DEFAULT_GOAL := help
.PHONY: help setup demo serve test check bench clean distclean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.built ## make .venv, install everything, build the extension; again: at once if nothing changed

demo: setup ## stream text from the packaged model, cut over three worker processes
	@$(BIN)/bloombee demo

serve: setup ## serve the packaged model by OpenAI's API, at http://127.0.0.1:8000/v1
	@$(BIN)/bloombee serve

test: setup ## every test
	$(BIN)/python -m pytest tests -n $(JOBS) --dist loadfile

check: setup ## the fast checks: format, lint, types, import rules, unit tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m pytest tests/unit -q -n $(JOBS)

bench: setup ## the pipeline benchmark
	$(BIN)/python bench/pipeline.py

clean: ## what builds and checks leave behind
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	rm -f bloombee/*.so $(VENV)/.built
	find bloombee tests tools bench -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## and .venv
	rm -rf $(VENV)

# Three steps with a stamp each, so that a changed source file rebuilds the extension and installs nothing again.

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or later is needed: make setup PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' \
	  || { echo "this Python has no venv module; on Debian or Ubuntu: apt-get install python3-venv" >&2; exit 2; }
	@$(PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' \
	  || { echo "this Python has no C headers; on Debian or Ubuntu: apt-get install python3-dev" >&2; exit 2; }
	@command -v $${CXX:-c++} >/dev/null \
	  || { echo "a C++20 compiler is needed; on Debian or Ubuntu: apt-get install g++" >&2; exit 2; }
	@echo "setup 1/4: $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.made constraints.txt
	@echo "setup 2/4: torch (the largest part; nothing is said meanwhile)"
	@$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	@echo "setup 3/4: build tools"
	@$(PIP) setuptools pybind11 cmake ninja
	@touch $@

$(VENV)/.built: $(VENV)/.installed pyproject.toml $(NATIVE)
	@echo "setup 4/4: the native extension, file by file (minutes the first time, most of all with CUDA, which BLOOMBEE_CUDA=off leaves out)"
	@$(BIN)/python setup.py -q build_ext --inplace
	@echo "setup 4/4: bloombee and the other dependencies (a minute or two, nothing is said meanwhile)"
	@$(PIP) --no-build-isolation --editable '.[dev,bench]'
	@touch $@
