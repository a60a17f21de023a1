"""What importing the package does to a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
VARIABLE = "THP_MEM_ALLOC_ENABLE"
SHOW = f"import sys, ldm, os; print(os.environ[{VARIABLE!r}], 'torch' in sys.modules)"


@pytest.mark.parametrize(("given", "expected"), [(None, "1"), ("0", "0"), ("1", "1")])
def test_torch_is_told_to_ask_for_huge_pages_before_it_is_imported_unless_the_user_said_otherwise(given, expected):
    env = {name: value for name, value in os.environ.items() if name != VARIABLE}
    env.update({} if given is None else {VARIABLE: given})
    said = subprocess.run(
        (sys.executable, "-c", SHOW), cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True, check=True
    )
    assert said.stdout.split() == [expected, "False"]
