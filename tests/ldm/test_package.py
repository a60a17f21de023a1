"""What importing the package does to a process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHOW = (
    "import os, sys; before = dict(os.environ); import ldm; print(dict(os.environ) == before, 'torch' in sys.modules)"
)


def test_importing_the_package_imports_no_torch_and_sets_no_variable():
    said = subprocess.run((sys.executable, "-c", SHOW), cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    assert said.stdout.split() == ["True", "False"]
