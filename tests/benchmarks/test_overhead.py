"""The benchmark of what is not network time measures both jobs, both ways, and writes what it shows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def overhead(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import overhead

    return overhead


def test_a_share_is_of_the_time_without_networks(overhead):
    assert overhead.Round(seconds=10.0, network=9.5).share == pytest.approx(5.0)


def test_the_time_of_every_network_counts(overhead, monkeypatch):
    """A clock that moves a second whenever it is looked at: two looks a call."""
    from tests.tiny import random_model

    model = random_model()
    clock = overhead.NetworkClock(model)
    monkeypatch.setattr(overhead.time, "perf_counter", iter(range(100)).__next__)
    with torch.no_grad():
        model.decode_first_stage(torch.zeros(1, model.channels, 8, 8))
    assert clock.seconds == 2.0, "of the decoder and the convolution before it"


def test_networks_that_sleep_give_pictures_worth_encoding(overhead):
    from ldm.inference.images import encode_png, to_pixels

    decoder = overhead.SleepingDecoder(factor=8)
    (pixels,) = to_pixels(decoder(torch.zeros(1, 4, 16, 16)))
    assert pixels.shape == (128, 128, 3)
    assert 0.3 < len(encode_png(pixels)) / pixels.size < 0.9


@pytest.mark.slow
def test_a_small_measurement_is_shown_and_written(tmp_path):
    command = [sys.executable, "benchmarks/overhead.py", "--images=4", "--repeats=1", "--set", "steps=2"]
    done = subprocess.run(
        [*command, f"--json={tmp_path / 'found.json'}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 1), done.stderr  # so small a job proves nothing about the bar
    _, _, *rows = done.stdout.splitlines()
    assert [row.split(" | ")[:2] for row in rows] == [
        ["| model", "overlapped"],
        ["| model", "in turn"],
        ["| card", "overlapped"],
        ["| card", "in turn"],
    ]
    found = json.loads((tmp_path / "found.json").read_text())
    for ways in found["jobs"].values():
        assert all(0 < round_["network"] < round_["seconds"] for rounds in ways.values() for round_ in rounds)
