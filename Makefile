# One way in, for people and for CI. Recipes are short; longer shell is in tools/, where shellcheck reads it.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

export PYTHON ?= python3
export TORCH ?=
PROMPTS ?= examples/prompts.txt
MODEL ?= emoji-v1
SETTINGS ?=
SEED ?= 1
MINUTES ?= 15
BENCH ?=

# python3.8 on the path, else the newest 3.8 that pyenv has built.
PYTHON38 ?= $(or $(shell python3.8 -c 'import sys; print(sys.executable)' 2>/dev/null),$\
    $(lastword $(sort $(wildcard $(HOME)/.pyenv/versions/3.8.*/bin/python3.8))),python3.8)

IN_VENV := PATH="$(CURDIR)/.venv/bin:$$PATH"
SHELL_FILES = $(shell git ls-files '*.sh' .ci/run)

.PHONY: help run test test-quick lint type format check golden bench bench-shortcuts chaos test-dtk2210 clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' Makefile
	@echo "Variables: PYTHON=$(PYTHON) TORCH='torch==...' PROMPTS=$(PROMPTS) MODEL=$(MODEL) SETTINGS='$(SETTINGS)' SEED=$(SEED) MINUTES=$(MINUTES) BENCH='$(BENCH)'"

run: .venv/run.stamp  ## prompts to pictures with the model that ships here, on a fresh machine
	$(IN_VENV) python -m jobs submit '$(PROMPTS)' cluster=local model=$(MODEL) $(SETTINGS)

# Two processes, each with Slurm clusters of its own; loadgroup hands the tests out one by one, as they take 1 ms to 90 s.
test: .venv/test.stamp  ## every test, on a real Slurm cluster too; installs the packages they need when it may
	tools/apt.sh tests/apt-packages.txt
	OMP_NUM_THREADS=1 $(IN_VENV) pytest -m "" -rs -n 2 --dist loadgroup

test-quick: .venv/test.stamp  ## the tests that need no cluster and little time
	$(IN_VENV) pytest

lint: .venv/test.stamp  ## ruff and shellcheck
	$(IN_VENV) ruff check .
	$(IN_VENV) ruff format --check .
	$(IN_VENV) shellcheck $(SHELL_FILES)

type: .venv/test.stamp  ## mypy
	$(IN_VENV) mypy

format: .venv/test.stamp  ## rewrite the Python files in ruff's format
	$(IN_VENV) ruff check --fix .
	$(IN_VENV) ruff format .

check: lint type test-quick  ## what must pass before a commit

golden: .venv/test.stamp  ## rewrite the golden files of generated text; read the diff
	UPDATE_GOLDEN=1 $(IN_VENV) pytest -k golden

bench: .venv/test.stamp .venv-peers/peers.stamp  ## measure loading, a worker's overhead, the batch system in small, the networks against diffusers
	tools/apt.sh tests/apt-packages.txt
	$(IN_VENV) python benchmarks/load.py
	$(IN_VENV) python benchmarks/cluster.py
	$(IN_VENV) python benchmarks/speed.py $(BENCH)

bench-shortcuts: .venv/test.stamp  ## measure what each shortcut gives and costs, and write docs/shortcuts.md
	$(IN_VENV) python benchmarks/shortcuts.py $(BENCH)

chaos: .venv/test.stamp  ## let everything happen to a run on a Slurm cluster of its own for MINUTES, and judge it
	tools/apt.sh tests/apt-packages.txt
	$(IN_VENV) python benchmarks/chaos.py --seed $(SEED) --minutes $(MINUTES)

test-dtk2210: .venv-dtk2210/test.stamp  ## unit and parity tests on Python 3.8 and torch 1.10, the platform of DTK 22.10
	.venv-dtk2210/bin/python -m pytest -rs -m "not slurm and not gpu and not weights"

clean:  ## remove the virtual environments and caches; pictures stay
	rm -rf .venv .venv-dtk2210 .venv-peers .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info

.venv/run.stamp: pyproject.toml requirements/tested.txt tools/venv.sh
	tools/venv.sh run
	touch $@

.venv/test.stamp: pyproject.toml requirements/tested.txt requirements/torch.txt tools/venv.sh
	tools/venv.sh test
	touch .venv/run.stamp $@

.venv-peers/peers.stamp: .venv/test.stamp requirements/tested.txt tools/venv.sh
	tools/venv.sh peers
	touch $@

.venv-dtk2210/test.stamp: requirements/dtk2210.txt tests/dtk2210-requirements.txt
	$(PYTHON38) -m venv .venv-dtk2210
	.venv-dtk2210/bin/python -m pip install --no-deps --requirement tests/dtk2210-requirements.txt
	touch $@
