# One command each, on a fresh Debian 12: `make demo`, `make test`.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
PYTHON := .venv/bin/python
READY := .venv/.ready
ARGS ?=
# Test files are shared out to processes that don't see each other's mounts and links; one more than CPUs, since tests wait.
# A process that dies is a failure; with another one in its place pytest-xdist would wait for ever.
WORKERS ?= $(shell expr $$(nproc) + 1)
ifeq ($(WORKERS),0)
ALL_TESTS := $(PYTHON) -m pytest
else
ALL_TESTS := ISOLATED_PYTHON=$(CURDIR)/$(PYTHON) $(PYTHON) -m pytest --dist loadfile --no-loadscope-reorder --max-worker-restart 0 \
	--tx $(WORKERS)*popen//python=$(CURDIR)/tests/containers/isolated-python
endif

.PHONY: help demo quick test test-kind test-unit test-crash test-watch failures restarts stress fuzz hostile docs bench lint clean prepare engines

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: prepare ## shows scplan on a throwaway container, in half a minute
	@$(PYTHON) -m examples.demo

test: prepare engines ## all tests; ARGS='-k nic' hands arguments to pytest, WORKERS=0 keeps to one process
	@$(ALL_TESTS) $(ARGS)

quick: $(READY) ## what to run at each save, in seconds: linters, types, and the unit tests that are quick
	@$(PYTHON) -m ruff check . && $(PYTHON) -m ruff format --check --quiet . && $(PYTHON) -m mypy --strict
	@$(PYTHON) -m pytest tests/unit -m 'not slow' -n $(or $(WORKERS),2) $(ARGS)

test-kind: prepare ## all tests of one kind: K=mount
	@$(if $(K),,echo "which one? make test-kind K=mount" >&2; exit 2)
	@$(ALL_TESTS) tests/unit tests/kernel tests/e2e tests/hostile -k '$(K)' $(ARGS)

test-unit: $(READY) ## the tests that need neither root nor containers
	@$(PYTHON) -m pytest tests/unit tests/test_lint.py $(ARGS)

test-crash: prepare ## kills scplan, or asks it to stop, at every system call, and fails each; hours, in as many runs as you like
	@mkdir -p state/run
	@echo "what fails is kept at once in state/run/crash-failures"
	@echo "what survives is in state/run/crash-done: another run of the same code goes on from there"
	@CRASH_POINTS=all CRASH_FAILURES=$(CURDIR)/state/run/crash-failures CRASH_DONE=$(CURDIR)/state/run/crash-done \
	  $(subst --dist loadfile,--dist load --maxschedchunk 1,$(ALL_TESTS)) tests/crash $(ARGS)

failures: prepare ## strikes at every place of a plan, and checks properties of more configurations; EXAMPLES=100
	@SCPLAN_ALL_PLACES=1 SCPLAN_PROPERTY_EXAMPLES=$(or $(EXAMPLES),100) $(PYTHON) -m pytest --timeout 3600 \
	  tests/e2e/test_failures.py tests/e2e/test_undo_fails.py tests/property $(ARGS)

test-watch: prepare ## has `scplan watch` see containers of all engines start
	@SCPLAN_ALL_ENGINES=1 $(PYTHON) -m pytest tests/e2e/test_watch.py tests/e2e/test_watch_engines.py -rP $(ARGS)

restarts: prepare ## restarts containers of every runtime, again and again; RESTARTS=50
	@SCPLAN_RESTARTS=$(or $(RESTARTS),50) SCPLAN_STARTS=20 $(PYTHON) -m pytest --timeout 3600 \
	  tests/e2e/test_lifecycle.py tests/e2e/test_lifecycle_engines.py tests/e2e/test_hook_refusals.py $(ARGS)

stress: prepare ## applies beside restarts of containers of every engine; RESTARTS=20
	@SCPLAN_STRESS=$(or $(RESTARTS),20) $(PYTHON) -m pytest --timeout 3600 -rP tests/e2e/test_restart_stress.py $(ARGS)

fuzz: prepare ## feeds damaged input to everything that reads, guided by coverage; FUZZ_SECONDS=30 for each reader
	@$(PYTHON) -m pip install --quiet 'atheris>=2.3' || echo "no atheris here: mutating blindly"
	@$(PYTHON) -m tests.fuzz $(or $(FUZZ_SECONDS),30)

hostile: prepare ## containers' roots race with scplan for longer; SECONDS_EACH=20
	@SCPLAN_RACE_SECONDS=$(or $(SECONDS_EACH),20) $(PYTHON) -m pytest tests/hostile -rP $(ARGS)

docs: $(READY) ## writes the reference pages from the code
	@$(PYTHON) -m docs.generate

bench: prepare ## measures speed and memory; BENCH_CONTAINERS=1000
	@$(PYTHON) -m tests.bench

lint: $(READY) ## ruff and mypy; `make lint FIX=1` also mends what it can
ifdef FIX
	@$(PYTHON) -m ruff check --fix . ; $(PYTHON) -m ruff format .
endif
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m mypy --strict

clean: ## removes what these commands made in the checkout
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist state/run ./*.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Debian packages first: the environment needs python3-venv.
prepare:
	@.ci/install-packages
	@$(MAKE) --silent --no-print-directory $(READY)

# Container engines, which nothing but their tests needs.
engines:
	@.ci/install-packages engines

$(READY): pyproject.toml
	@.ci/make-venv .venv
	@touch $@
