#!/usr/bin/env bash
# The unit and parity tests on Python 3.8 and torch 1.10, in the environment that `make test-dtk2210` builds.
set -euo pipefail
cd "$(dirname "$0")/.."

# What cannot run there, and why.
leave_out=(
)

exec .venv-dtk2210/bin/python -m pytest -rs -m "not slurm and not gpu and not weights" "${leave_out[@]}" "$@"
