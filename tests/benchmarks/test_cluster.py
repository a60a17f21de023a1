"""The benchmarks of the batch system work, and what they write is what was measured."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree
from pathlib import Path
from types import SimpleNamespace
from typing import List

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The modules beside the script, as it finds them."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from on_cluster import measure, overhead, page, scaling

    return SimpleNamespace(measure=measure, overhead=overhead, page=page, scaling=scaling)


def run_script(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_wide_spread_is_said(parts: SimpleNamespace) -> None:
    assert parts.measure.Measured([1.0, 1.05, 1.02]).text("s") == "1.02 s (1.00 to 1.05)"
    assert parts.measure.Measured([1.0, 2.0, 1.5]).text("s", 1) == "1.5 s (1.0 to 2.0, spread 67%)"


def test_parts_of_a_task_are_those_of_its_whole_time(parts: SimpleNamespace) -> None:
    """A task of 900 pictures was measured, so that nothing is scaled."""
    seconds = parts.overhead.Round(
        empty=0.1, srun=0.3, rendered=905.0, submitted=905.5, session=903.0, sampling=900.0, images=900
    )
    assert sum(seconds.shares().values()) == pytest.approx(905.5 - 900.0)
    assert seconds.shares()["submitit"] == pytest.approx(0.5)


def points(parts: SimpleNamespace) -> List[object]:
    """Two nodes that are not quite twice as fast as one."""
    one = parts.scaling.Point(nodes=1, images=10, whole=10.0, start_up=0.5, rates=[1.0])
    two = parts.scaling.Point(nodes=2, images=20, whole=12.5, start_up=1.0, rates=[1.0, 0.9])
    return [one, two]


def test_efficiency_is_against_one_node(parts: SimpleNamespace) -> None:
    rows = parts.scaling.curve_table(points(parts))[2:]
    assert rows == [
        "| 1 | 10 | 10.0 | 0.5 | 1.00 | 100.0% | 1.00 | 100.0% |",
        "| 2 | 20 | 12.5 | 1.0 | 1.60 | 80.0% | 1.90 | 95.0% |",
    ]


def test_page_holds_the_table_and_names_no_machine(
    parts: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(parts.page, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(parts.page, "PLOT", tmp_path / "plot.svg")
    monkeypatch.setattr(parts.page, "machine", lambda slurm: f"2 x processor, {slurm}")
    parts.page.write([parts.measure.Row("plan", "under 60 s", "70 s", False)], points(parts), 10, "slurm 1")
    text = (tmp_path / "page.md").read_text()
    assert "| plan | under 60 s | 70 s | **no** |" in text
    assert "2 x processor, slurm 1" in text
    parts.page.replace_rows([parts.measure.Row("plan", "under 60 s", "50 s", True)])
    assert (tmp_path / "page.md").read_text() == text.replace("| 70 s | **no** |", "| 50 s | yes |")
    with pytest.raises(ValueError, match="is not in list"):
        parts.page.replace_rows([parts.measure.Row("status", "under 2 s", "1 s", True)])
    plot = xml.etree.ElementTree.fromstring((tmp_path / "plot.svg").read_text())
    assert len(plot.findall("{http://www.w3.org/2000/svg}polyline")) >= 3


def test_chaos_of_several_seeds_is_one_row(parts: SimpleNamespace, tmp_path: Path) -> None:
    files = [tmp_path / "1.json", tmp_path / "2.json"]
    for seed, file in enumerate(files):
        found = {"seed": seed, "images": 2000, "nodes": 4, "model": "emoji-v1", "runs": ["a", "b"], "faults": []}
        file.write_text(json.dumps({**found, "seconds": {"disturbed": 930}, "events": {"killed a worker": 40, "x": 2}}))
    row = parts.page.chaos_row(files)
    assert row.met is True
    assert row.found == "2 seeds of 15 min, 4 runs with emoji-v1: 84 events (killed a worker 80, x 4); 0 faults"


@pytest.mark.slow
@pytest.mark.slurm
def test_small_measurement_gives_every_row_asked_for() -> None:
    done = run_script("benchmarks/cluster.py", "--only", "status", "start")
    assert done.returncode == 0, done.stderr
    assert [row.split("|")[1].strip() for row in done.stdout.splitlines()] == [
        "`status` of a run of 2,000 images",
        "`--help`",
        "`render`",
    ]
