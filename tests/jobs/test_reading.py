"""A run that one may not read is said in one line, whichever of its files is looked at."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Iterator

import pytest

from jobs.cli import main
from jobs.launch import missing_shards
from jobs.reading import is_there, reading
from jobs.records import read_records, read_summary
from jobs.rundir import find_runs
from jobs.worker import Worker, run_shard
from ldm.errors import RunError
from tests.jobs.support import FakeModel, prepare

NOBODY = 65534


@contextlib.contextmanager
def closed(folder: Path) -> Iterator[None]:
    """The folder, which nobody may enter; root enters every folder, so root is somebody else meanwhile."""
    folder.chmod(0)
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o700)


@pytest.mark.parametrize("command", ["status", "resume", "work", "grid", "render"])
def test_a_run_that_one_may_not_enter_is_one_line(tmp_path, capsys, command):
    run = prepare(tmp_path).run
    with closed(run.path):
        assert main([command, str(run.path)]) == 2
    said = capsys.readouterr().err
    path = run.path if command == "render" else run.info_path
    assert said.splitlines()[-1] == f"jobs: error: cannot read {path}: Permission denied"
    assert "Traceback" not in said


def test_every_part_of_a_run_names_what_could_not_be_read(tmp_path):
    prepared = prepare(tmp_path)
    run = prepared.run
    run_shard(run.shard(0), run, FakeModel(), Worker("one", "fake", 2))
    run.add_submission({"script": "one"})
    reads = {
        run.plan_path: lambda: run.shard(0),
        run.submissions_path: run.submissions,
        run.records_path(0): lambda: read_summary(run.records_path(0)),
        run.records_path(1): lambda: missing_shards(run, prepared.info),
        run.path.parent: lambda: find_runs(run.path.parent, "prompts"),
    }
    for path, read in reads.items():
        with closed(run.path.parent), pytest.raises(RunError, match=r"^cannot read .*: Permission denied$") as caught:
            read()
        assert str(path.parent) in str(caught.value)


def test_pictures_that_one_may_not_look_at_are_not_taken_for_missing(tmp_path):
    run = prepare(tmp_path).run
    run_shard(run.shard(0), run, FakeModel(), Worker("one", "fake", 2))
    records = read_records(run.records_path(0))
    assert len(records.images) == 2
    with closed(run.path / "samples"), pytest.raises(RunError, match="cannot read"):
        is_there(run.image_path(records.images[0].file))
    with closed(run.path / "samples"), pytest.raises(RunError, match="cannot read"):
        run_shard(run.shard(0), run, FakeModel(), Worker("two", "fake", 2))


def test_what_is_not_there_is_no_failure(tmp_path):
    assert not is_there(tmp_path / "missing" / "file")
    with pytest.raises(RunError, match=r"cannot read .*missing: No such file or directory"), reading(
        tmp_path / "missing"
    ):
        (tmp_path / "missing").read_bytes()
