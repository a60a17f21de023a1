"""The promise of the toolkit, in small: whatever happens to a run, in the end every picture is there once and whole.

`make chaos` does the same for as long as one likes, with a real model.
"""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Iterator

import pytest

from tests.integration.login_node import PROJECT, LoginNode
from tests.integration.ordeal import Diary, Ordeal
from tests.slurm_lab.accidents import Accidents
from tests.slurm_lab.cluster import SlurmLab
from tests.slurm_lab.fixtures import require_slurm

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

SEED = 3
IMAGES = 80
EVENTS = 16
PAUSE = 0.3, 1.0  # seconds between two of them
# Half a second a picture, so that a task lasts for five; one task a node, so that all nodes have work.
WORK = "model=rehearsal", "steps=500", "batch_size=2", "images_per_shard=10"
CLUSTER = "cluster=scnet-dcu", "cluster.cpus_per_card=1", "cluster.directives.exclusive="


@pytest.fixture
def undisturbed(tmp_path: Path) -> Path:
    """The same pictures, made here by many processes that nothing befell."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"picture {number}\n" for number in range(IMAGES)))
    command = ["submit", str(prompts), f"outputs={tmp_path}", "name=undisturbed", "cards=8", *WORK]
    subprocess.run([sys.executable, "-m", "jobs", *command], cwd=PROJECT, capture_output=True, check=True)
    return next(tmp_path.glob("undisturbed-*"))


@pytest.fixture
def cluster() -> Iterator[SlurmLab]:
    """A cluster of its own: after such a day, Slurm 22.05 may take an idle node for one whose cards are in use."""
    require_slurm()
    with SlurmLab(accounting=False) as lab:
        yield lab


def test_a_bad_day_costs_no_picture(cluster: SlurmLab, tmp_path: Path, undisturbed: Path) -> None:
    dice, diary = random.Random(SEED), Diary()
    accidents = Accidents(cluster, dice, diary)
    ordeal = Ordeal(LoginNode(cluster, tmp_path), accidents, dice, diary)
    try:
        ordeal.begin(tmp_path / "prompts.txt", *WORK, *CLUSTER)
        ordeal.suffer(PAUSE, events=EVENTS)
    finally:
        ordeal.heal()
    assert ordeal.events >= EVENTS, "\n".join(diary.lines)
    assert ordeal.verdict(undisturbed) == [], "\n".join(diary.lines)
