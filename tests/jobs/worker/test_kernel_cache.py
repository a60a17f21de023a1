"""MIOpen's kernels go to a folder of the process's own, where there is room for them, and do not stay."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jobs.worker.kernel_cache import VARIABLES, find_folder, kernel_cache, places


def in_job(tmpdir: Path) -> dict[str, str]:
    return {"SLURM_JOB_ID": "12", "TMPDIR": str(tmpdir)}


def test_a_process_of_a_job_has_an_empty_folder_of_its_own_while_it_works(tmp_path):
    environ = in_job(tmp_path)
    with kernel_cache(environ, tmp_path / "run", 3) as folder:
        assert folder is not None
        assert folder.parent == tmp_path
        assert folder.name.startswith("sdbatch-miopen-12-3-")
        assert list(folder.iterdir()) == []
        assert {environ[name] for name in VARIABLES} == {str(folder)}
        with kernel_cache(in_job(tmp_path), tmp_path / "run", 3) as other:
            assert other != folder, "a second copy of a process must not share its databases"
        (folder / "kernel").write_bytes(b"x")
    assert list(tmp_path.iterdir()) == []
    assert environ == in_job(tmp_path)


def test_the_folder_goes_when_the_work_fails(tmp_path):
    def fail() -> None:
        with kernel_cache(in_job(tmp_path), tmp_path, 0):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", VARIABLES)
def test_what_the_site_has_set_stays(tmp_path, name):
    environ = {**in_job(tmp_path), name: "/site/cache"}
    with kernel_cache(environ, tmp_path, 0) as folder:
        assert folder is None
        assert environ == {**in_job(tmp_path), name: "/site/cache"}
        assert list(tmp_path.iterdir()) == []


def test_outside_a_job_nothing_is_made(tmp_path):
    environ = {"TMPDIR": str(tmp_path)}
    with kernel_cache(environ, tmp_path, 0) as folder:
        assert folder is None
    assert environ == {"TMPDIR": str(tmp_path)}


def test_the_node_comes_before_the_run_folder(tmp_path):
    assert places({"TMPDIR": "/scratch/7"}, tmp_path) == [Path("/scratch/7"), Path("/tmp"), tmp_path / "cache"]
    assert places({"TMPDIR": "/tmp"}, tmp_path) == [Path("/tmp"), tmp_path / "cache"]
    assert places({}, tmp_path) == [Path("/tmp"), tmp_path / "cache"]


def test_a_tiny_disk_is_passed_over(full_disk, tmp_path):
    folder = find_folder([full_disk, tmp_path], "12-0")
    assert folder is not None
    assert folder.parent == tmp_path


def test_a_disk_that_is_full_is_found_out_by_writing(full_disk, tmp_path):
    """8 KiB are free: more than is asked for here, and less than is written to see."""
    folder = find_folder([full_disk, tmp_path], "12-0", least_free_mb=0)
    assert folder is not None
    assert folder.parent == tmp_path
    assert [path.name for path in full_disk.iterdir()] == ["ballast"]


def test_a_folder_that_is_not_there_or_not_mine_is_passed_over(tmp_path):
    (tmp_path / "a-file").write_text("")
    folder = find_folder([tmp_path / "missing" / "deeper", tmp_path / "a-file", tmp_path / "cache"], "12-0")
    assert folder is not None
    assert folder.parent == tmp_path / "cache"


def test_the_run_folder_is_left_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr("jobs.worker.kernel_cache.places", lambda environ, run_folder: [run_folder / "cache"])
    with kernel_cache(in_job(tmp_path), tmp_path, 0) as folder:
        assert folder is not None
        assert folder.parent == tmp_path / "cache"
        with kernel_cache(in_job(tmp_path), tmp_path, 1):
            pass
        assert folder.is_dir(), "the other process took only its own away"
    assert list(tmp_path.iterdir()) == []


def test_where_there_is_no_room_at_all_the_work_goes_on_and_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("jobs.worker.kernel_cache.LEAST_FREE_MB", 0)
    monkeypatch.setattr(
        "jobs.worker.kernel_cache.places", lambda environ, run_folder: [tmp_path / "missing" / "deeper"]
    )
    environ = in_job(tmp_path)
    with kernel_cache(environ, tmp_path, 0) as folder:
        assert folder is None
    assert environ == in_job(tmp_path)
    assert "it keeps them in the home folder" in caplog.text


def test_free_space_is_asked_of_the_file_system(tmp_path):
    free_mb = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize // 2**20
    assert find_folder([tmp_path], "12-0", least_free_mb=2 * free_mb + 1) is None
