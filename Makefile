# Everything runs in the virtual environment $(VENV), made on first use from Python 3.11 or newer; nothing else is needed.
#   make demo         install, run the demonstration on synthetic tissue, show its result
#   make test         install, run all tests with coverage
#   make check        format check, lint, types          make format   rewrite the files in the one format
#   make bench        run every benchmarks/*.py          make clean    remove the environment and what tools left
#   make constraints  resolve all dependencies anew and pin them
# Variables: PYTHON (interpreter), VENV (folder), TORCH_INDEX (a package index for torch, such as one of CPU builds),
# DEMO (folder of the demonstration), WORKERS (test processes), PYTEST_ARGS (more options for pytest).

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV ?= .venv
DEMO ?= demo
TORCH_INDEX ?=
WORKERS ?= 2
PYTEST_ARGS ?=
# The first interpreter that is new enough and can make virtual environments.
USABLE := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	"$$p" -c '$(USABLE)' 2>/dev/null && echo "$$p" && break; done)

BIN := $(VENV)/bin
CONSTRAINTS := requirements/constraints.txt
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS)
TORCH_FROM = $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
SOURCES := superst_monai tests bundles $(wildcard benchmarks)
# Ruff reads no setup.cfg, so its options are here; RUF001-3 forbid the mathematical signs that formulas need.
FORMAT := $(BIN)/ruff format --isolated --line-length 120 --target-version py311
LINT := $(BIN)/ruff check --isolated --line-length 120 --target-version py311 \
	--select E,F,I,UP,B,D1,SIM,RUF,PT,N --ignore D105,D107,N812,RUF001,RUF002,RUF003

.PHONY: help
help:
	@sed -n 's/^#  *make/make/p' Makefile

$(VENV)/.made:
	@"$(PYTHON)" -c '$(USABLE)' 2>/dev/null || { echo "This needs Python 3.11 or newer with venv \
	(on Debian: the package python3-venv); found: '$(PYTHON)'. Name one with: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	"$(PYTHON)" -m venv "$(VENV)"
	@touch $@

# torch comes first and alone, so that TORCH_INDEX serves no other package.
$(VENV)/.torch: $(VENV)/.made $(CONSTRAINTS)
	$(INSTALL) torch $(TORCH_FROM)
	@touch $@

$(VENV)/.package: $(VENV)/.torch setup.cfg pyproject.toml
	$(INSTALL) --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.torch setup.cfg pyproject.toml
	$(INSTALL) --editable '.[test]'
	@touch $@ $(VENV)/.package

$(VENV)/.dev: $(VENV)/.torch setup.cfg pyproject.toml
	$(INSTALL) --editable '.[dev]'
	@touch $@ $(VENV)/.test $(VENV)/.package

.PHONY: demo
demo: $(VENV)/.package
	$(BIN)/superst demo --out $(DEMO)
	@echo; for f in $(DEMO)/summary.*; do [ ! -f "$$f" ] || cat "$$f"; done
	@echo; echo "Figures:"; find "$(abspath $(DEMO))" -name '*.png' | sort

.PHONY: test
test: $(VENV)/.test
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --cov --cov-report=term $(PYTEST_ARGS)

.PHONY: check format-check lint types
check: format-check lint types
format-check: $(VENV)/.dev
	$(FORMAT) --check $(SOURCES)
lint: $(VENV)/.dev
	$(LINT) $(SOURCES)
types: $(VENV)/.dev
	$(BIN)/mypy

.PHONY: format
format: $(VENV)/.dev
	$(LINT) --select I --fix $(SOURCES)
	$(FORMAT) $(SOURCES)

.PHONY: bench
bench: $(VENV)/.package
	@for f in $(wildcard benchmarks/*.py); do echo "== $$f"; $(BIN)/python "$$f" || exit 1; done

# A fresh environment, resolved without pins; the comment at the head of the file is kept, builds (+cpu) are not named.
PINS := $(VENV)/pins
.PHONY: constraints
constraints:
	rm -rf "$(PINS)"
	$(MAKE) VENV="$(PINS)" "$(PINS)/.made"
	$(PINS)/bin/python -m pip install --quiet torch $(TORCH_FROM)
	$(PINS)/bin/python -m pip install --quiet --upgrade --editable '.[dev]'
	{ sed -n '/^#/p' $(CONSTRAINTS); $(PINS)/bin/python -m pip freeze --all --exclude-editable --exclude pip \
	| sed 's/+.*//'; } > $(CONSTRAINTS).new
	mv $(CONSTRAINTS).new $(CONSTRAINTS) && rm -rf "$(PINS)"

.PHONY: clean
clean:
	rm -rf "$(VENV)" build dist *.egg-info .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache
