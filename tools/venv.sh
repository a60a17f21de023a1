#!/usr/bin/env bash
# Make or complete a virtual environment, in .venv if nothing else is said:  tools/venv.sh run|test|peers
#   run   what generating needs; torch without a card's libraries where pip can find such a build and no card is here
#   test  everything that the tests, the linters and training need
#   peers what benchmarks/speed.py compares with, in .venv-peers, on the same torch as .venv has
# PYTHON names the interpreter to start from. TORCH names what to install as torch, such as TORCH=torch==2.13.0.
set -euo pipefail
cd "$(dirname "$0")/.."
level=${1:-}
venv=.venv
[ "$level" != peers ] || venv=.venv-peers
python=$venv/bin/python

make_venv() {
  local base=${PYTHON:-python3}
  if ! "$base" -c 'import sys; sys.exit(sys.version_info < (3, 8))'; then
    echo "Python must be 3.8 or newer, found: $("$base" --version 2>&1); name another with PYTHON=..." >&2
    exit 2
  fi
  "$base" -c 'import ensurepip, venv' 2>/dev/null || tools/apt.sh --required python3-venv
  "$base" -m venv "$venv"
  # The pip of Debian 11 and Ubuntu 20.04 cannot install a project in place that has a pyproject.toml and no setup.py.
  if ! "$python" -c 'import pip, sys; sys.exit(tuple(map(int, pip.__version__.split(".")[:2])) < (21, 3))'; then
    "$python" -m pip install --disable-pip-version-check --upgrade 'pip>=21.3'
  fi
}

pip_install() {
  "$python" -m pip install --disable-pip-version-check --constraint requirements/tested.txt "$@"
}

has_card() {
  command -v nvidia-smi >/dev/null || command -v rocm-smi >/dev/null || command -v hy-smi >/dev/null
}

# The newest CPU build that pip's own configuration offers, a fifth of the full size; or nothing.
cpu_build() {
  "$python" -m pip index versions torch 2>/dev/null | grep -o '[0-9.]*+cpu' | head -n 1 | sed 's/^/torch==/' || true
}

install_for_run() {
  local small=
  if ! "$python" -c 'import torch' 2>/dev/null; then
    has_card || small=$(cpu_build)
    read -r -a torch <<<"${TORCH:-${small:-torch}}"
    pip_install "${torch[@]}"
  fi
  pip_install --editable .
}

install_for_test() {
  local -a torch=(--requirement requirements/torch.txt)
  [ -z "${TORCH:-}" ] || read -r -a torch <<<"$TORCH"
  pip_install "${torch[@]}" opencv-python-headless PyWavelets --editable '.[dev,eval,train]'
  pip_install --no-deps invisible-watermark  # its opencv-python would need libGL
}

# A ratio says nothing of the programs where each has another torch.
install_for_peers() {
  local same
  same=$(.venv/bin/python -c 'from importlib.metadata import version; print("torch==" + version("torch"))') || {
    echo "tools/venv.sh peers takes the torch of .venv, which has none: make it first with tools/venv.sh test" >&2
    exit 2
  }
  pip_install "$same" accelerate diffusers safetensors transformers
}

case $level in
  run | test | peers) ;;
  *)
    echo "usage: tools/venv.sh run|test|peers, got '$level'" >&2
    exit 2
    ;;
esac
[ -x "$python" ] || make_venv
"install_for_$level"
