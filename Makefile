# One verb per task; `make help` lists them. Needs make and a Python from 3.11 to 3.13 with its venv module.
# The environment's own Python where there is one: a choice once made with PYTHON= stays.
PYTHON ?= $(shell .venv/bin/python -c 'import sys; print(sys.executable)' 2>/dev/null || echo python3)
ARGS ?=
# Test processes; a file's tests, and what they share, stay in one. 0: none beside pytest's own, as for a
# choice by ARGS, which is sooner done than they are started.
WORKERS ?= $(if $(strip $(ARGS)),0,2)
PARALLEL = $(if $(filter-out 0,$(WORKERS)),-n $(WORKERS) --dist loadfile)

BIN := .venv/bin
SETUP := scripts/setup_venv.py
LOCKS := --lock locks/build.txt --lock locks/runtime.txt --lock locks/dev.txt

# NUMPY1=1 tests the runtime with the oldest numpy it accepts.
RUNTIME_LOCK := locks/runtime$(if $(filter 1,$(NUMPY1)),-numpy1).txt
RUNTIME_VERSION = $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
RUNTIME_VENV = .venv-runtime-$(RUNTIME_VERSION)$(if $(filter 1,$(NUMPY1)),-numpy1)
RUNTIME_TESTS := tests/contract tests/runtime tests/conformance/test_engine.py

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup venv run up-distributed smoke test test-slow test-runtime lint format check bench bench-peers image lock clean

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: venv ## install everything into .venv (TORCH_CUDA=1: torch with CUDA)
	@echo "ready: .venv"

# Every other command starts here; quick when nothing changed.
venv:
	@$(PYTHON) $(SETUP) --venv .venv $(LOCKS) --torch --editable

run: venv ## build the sample release, serve it and open Dagster's UI; Ctrl-C ends it
	@exec $(BIN)/python -m orchestration.local run $(ARGS)

up-distributed: venv ## UI host and GPUSrv on this machine, with Postgres; ARGS="--ui-port 3100"; Ctrl-C ends it
	@exec $(BIN)/python -m orchestration.distributed $(ARGS)

smoke: venv ## build a release, serve it, ask it once, stop
	@exec $(BIN)/python -m orchestration.local smoke $(ARGS)

test: venv ## quick tests; ARGS="-k store" and the like are passed on; WORKERS=0 for one process
	@$(BIN)/python -m pytest -m "not slow" $(PARALLEL) $(ARGS)

test-slow: venv ## slow tests: real servers, real browsers, long runs
	@$(BIN)/python -m pytest -m slow $(PARALLEL) $(ARGS)

test-runtime: ## runtime tests without the build side (PYTHON=python3.13, NUMPY1=1)
	@$(PYTHON) $(SETUP) --venv $(RUNTIME_VENV) --lock $(RUNTIME_LOCK) --lock locks/runtime-test.txt
	@$(RUNTIME_VENV)/bin/python -m pytest $(RUNTIME_TESTS) -m "not slow and not build" $(PARALLEL) $(ARGS)

lint: venv ## style, types and the direction of imports
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

format: venv ## put the code into the house style
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

check: lint test ## lint and test: run it before each commit

bench-peers: ## install what the runtime is compared with into .venv-bench
	@$(PYTHON) $(SETUP) --venv .venv-bench --lock locks/bench.txt

bench: venv bench-peers ## measure the runtime
	@exec $(BIN)/python -m bench $(ARGS)

image: ## build Dockerfile.runtime (ENGINE=hailo, PLATFORM=linux/arm64) with docker, podman or buildah
	@sh deploy/image/build.sh $(ARGS)

lock: ## renew the lock files
	@PYTHON="$(PYTHON)" scripts/lock.sh

clean: ## remove what was made here; sources and sample weights stay
	rm -rf .venv .venv-lock .venv-runtime-* artifacts/build artifacts/releases artifacts/dagster_home \
		artifacts/distributed \
		.tmp_dagster_home_* .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis \
		.grimp_cache test-output build *.egg-info
	find assets bench orchestration runtime sample scripts tests -name __pycache__ -type d -prune -exec rm -rf {} +
