"""The benchmark of decoding measures both ways, and strips take less memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
def test_both_ways_are_measured():
    command = [sys.executable, "benchmarks/decode.py", "--config=tests/tiny.yaml", "--sizes=512", "--json"]
    done = subprocess.run([*command, "--dtype=float32"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    plain, strips = json.loads(done.stdout)
    assert [plain["way"], strips["way"]] == ["plain", "strips"]
    assert strips["peak_mib"] < plain["peak_mib"] / 2
    assert min(strips["seconds"], plain["processor_s"]) > 0
