"""The benchmark of loading measures every way, and leaves nothing behind."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(
    "assign" not in inspect.signature(torch.nn.Module.load_state_dict).parameters, reason="the floor needs torch 2.1"
)
def test_a_small_model_is_loaded_in_every_way(tmp_path):
    pytest.importorskip("safetensors")
    command = [sys.executable, "benchmarks/load.py", "--repeats=1", f"--folder={tmp_path}", "--config=tests/tiny.yaml"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr  # so small a model proves nothing about the bar
    header, *rows = done.stdout.splitlines()
    assert header.split()[0] == "way"
    assert [row[:14].strip() for row in rows] == ["default", "floor", "ours", "ours, bfloat16", "ours, .ckpt"]
    assert list(tmp_path.iterdir()) == []
