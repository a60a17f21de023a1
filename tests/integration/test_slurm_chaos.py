"""The promise of the toolkit, in small: whatever happens to a run, in the end every picture is there once and whole.

`make chaos` does the same for as long as one likes, with a real model.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.login_node import PROJECT

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

SOME_EVENTS = 4  # there are ten in the time below on a free machine; a busy one takes longer
# Half a second a picture, so that there is something to disturb.
SMALL = "--seed=3", "--minutes=0.4", f"--events={SOME_EVENTS}", "--images=80", "--model=rehearsal", "--steps=500"


def test_a_bad_day_costs_no_picture(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/chaos.py", *SMALL, f"--json={tmp_path / 'found.json'}"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["faults"] == []
    assert len(found["runs"]) >= 1
    assert sum(found["events"].values()) >= SOME_EVENTS
