"""The private Slurm clusters of a test session, as a pytest plugin; each starts with the first test that asks."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Iterator, List

import pytest

from tests.slurm_lab.cluster import SlurmLab
from tests.slurm_lab.machine import missing_programs, short_folder

PACKAGES = Path(__file__).parents[1] / "apt-packages.txt"


@pytest.fixture(scope="session")
def slurm() -> Iterator[SlurmLab]:
    """A cluster of 4 DCU nodes and 1 GPU node without accounting, as `sacct` is disabled at many sites."""
    require_slurm()
    with SlurmLab(accounting=False) as lab:
        yield lab


@pytest.fixture(scope="session")
def slurm_with_accounting() -> Iterator[SlurmLab]:
    """The same cluster with slurmdbd behind it, so that `sacct` answers."""
    require_slurm()
    with SlurmLab(accounting=True) as lab:
        yield lab


@pytest.fixture
def short_tmp() -> Iterator[Path]:
    """An empty folder with a name short enough for a cluster in it, which `tmp_path` has not."""
    folder = short_folder()
    yield folder
    shutil.rmtree(folder)


def require_slurm() -> None:
    """A test on Slurm fails where Slurm is not installed; leaving it out has to be asked for."""
    if os.environ.get("SDBATCH_NO_SLURM") == "1":
        pytest.skip("SDBATCH_NO_SLURM=1 leaves the tests on Slurm out")
    missing = missing_programs()
    if missing:
        pytest.fail(
            f"the tests on Slurm need {', '.join(missing)}; install: apt-get install --no-install-recommends "
            f"{' '.join(packages())}; or leave these tests out: SDBATCH_NO_SLURM=1",
            pytrace=False,
        )


def packages() -> List[str]:
    """The Debian packages that the tests need."""
    lines = PACKAGES.read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]
