# `make demo` and `make test` are all a newcomer needs; both install first. `make help` lists the rest.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MIN_VENV := .venv-torch-min
export PYTHON

.PHONY: help install demo demo-full test test-slow test-torch-min lint bench cluster cluster-down mlflow clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

install: $(VENV)/.installed ## the virtual environment .venv, from requirements.lock

# The stamp: nothing happens unless the lock or the package's metadata changed.
$(VENV)/.installed: requirements.lock pyproject.toml
	@cluster/install.sh $(VENV) requirements.lock

demo: install ## cluster, demo cohort, shards, pretraining, and where to look
	@cluster/demo.sh

demo-full: install ## all three stages, scores with pictures, and masks
	@cluster/demo_full.sh

test: install ## the unit tests
	$(BIN)/python -m pytest -m "not slow and not gpu"

test-slow: install ## kills, several workers, servers
	$(BIN)/python -m pytest -m slow

test-torch-min: $(MIN_VENV)/.installed ## the unit tests on the oldest torch we support
	$(MIN_VENV)/bin/python -c "import torch; print('torch', torch.__version__); assert torch.__version__.startswith('2.11.')"
	$(MIN_VENV)/bin/python -m pytest -m "not slow and not gpu"

$(MIN_VENV)/.installed: requirements.lock pyproject.toml
	@mkdir -p $(MIN_VENV)
	@# torch 2.11 refuses setuptools 82 and newer
	@sed -E 's/^torch==.*/torch==2.11.0/; s/^setuptools==.*/setuptools==81.0.0/' requirements.lock > $@.lock
	@cluster/install.sh $(MIN_VENV) $@.lock

lint: install ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install ## the benchmarks, figures in runs/bench/*.json
	@mkdir -p runs/bench
	$(BIN)/python jobs/benchmark.py data --json runs/bench/data.json
	$(BIN)/python jobs/benchmark.py convert --json runs/bench/convert.json
	$(BIN)/python jobs/benchmark.py step --json runs/bench/step.json

cluster: install ## a local Ray cluster with dashboard and MLflow, on loopback
	@cluster/local/up

cluster-down: ## end that cluster
	@cluster/local/down

mlflow: install ## look at past runs
	@$(BIN)/python cluster/local/local_cluster.py mlflow

clean: ## environments and caches go; runs/ stays
	@if [[ -x $(BIN)/python ]]; then cluster/local/down; fi
	rm -rf $(VENV) $(MIN_VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -rf platform/*.egg-info
	find platform tests jobs cluster -name __pycache__ -type d -prune -exec rm -rf {} +
