"""What a private cluster takes from the machine does not collide with what others take."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from tests.slurm_lab.cluster import SlurmLab
from tests.slurm_lab.machine import (
    BLOCK,
    LONGEST_FOLDER,
    LabError,
    clean_environment,
    reserve_ports,
    short_folder,
)


def test_two_blocks_of_ports_do_not_overlap() -> None:
    first_guard, first = reserve_ports()
    second_guard, second = reserve_ports()
    with first_guard, second_guard:
        assert abs(first - second) >= BLOCK


def test_more_nodes_than_there_are_ports_for_are_refused() -> None:
    with pytest.raises(LabError, match="at most 64 DCU nodes, got 65"):
        SlurmLab(accounting=False, dcu_nodes=65)


def test_folder_stays_short_where_the_temporary_one_is_long(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    long = tmp_path / ("x" * LONGEST_FOLDER)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    folder = short_folder()
    folder.rmdir()
    assert len(str(folder.parent)) <= LONGEST_FOLDER


def test_environment_of_an_allocation_is_left_behind() -> None:
    inside = {
        "HOME": "/home/user",
        "SLURM_JOB_ID": "7",
        "SLURMD_NODENAME": "n1",
        "SBATCH_PARTITION": "p",
        "SQUEUE_FORMAT": "%i",
        "SACCT_FORMAT": "jobid",
        "HIP_VISIBLE_DEVICES": "0",
        "MODULEPATH": "/modules",
        "LOADEDMODULES": "gcc",
        "_LMFILES_": "/modules/gcc",
        "BASH_FUNC_module%%": "() { :; }",
    }
    assert clean_environment(inside).keys() == {"HOME", "PATH"}
