"""A run that one may not read is said in one line, whichever of its files is looked at; what passes is waited for."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import Callable, Iterator, List

import pytest

from jobs import reading as module
from jobs.attendance import attend, read_attendances
from jobs.cli import main
from jobs.reading import TRIES, if_there, is_there, names_in, patiently, read_bytes, read_end, reading
from jobs.records import read_records, read_summary
from jobs.rundir import find_runs, plan_id_of
from jobs.storage.pack import pack_shard
from jobs.storage.pictures import keep, members, own_files, read, tars
from jobs.submit.launch import missing_shards
from jobs.worker.worker import Worker, run_shard
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
    for path, look in reads.items():
        with closed(run.path.parent), pytest.raises(RunError, match=r"^cannot read .*: Permission denied$") as caught:
            look()
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


def stale(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, times: int, code: int = errno.ESTALE) -> List[int]:
    """Have calls fail so often as they do on a shared file system; what is left of that."""
    real: Callable[..., object] = getattr(owner, name)
    left = [code] * times

    def failing(*words: object, **named: object) -> object:
        if left:
            raise OSError(left.pop(), "Stale file handle")
        return real(*words, **named)

    monkeypatch.setattr(owner, name, failing)
    monkeypatch.setattr(module, "TRY_AGAIN_SECONDS", 0.0)
    return left


@pytest.fixture
def made(tmp_path):
    """A run with something in every kind of file."""
    prepared = prepare(tmp_path)
    run = prepared.run
    for shard in (0, 1):
        run_shard(run.shard(shard), run, FakeModel(), Worker("one", "fake", 2))
    pack_shard(run, prepared.info, 1)
    run.add_submission({"script": "one"})
    attend(run.workers, {}, "one")
    return prepared


READS = {
    "records": lambda run, info: read_records(run.records_path(0)).images.keys(),
    "a sum": lambda run, info: read_summary(run.records_path(0)),
    "who is at work": lambda run, info: read_attendances(run.workers),
    "the plan": lambda run, info: run.shard(1),
    "submissions": lambda run, info: run.submissions(),
    "the id of a plan": lambda run, info: plan_id_of(run),
    "runs": lambda run, info: [each.path for each in find_runs(run.path.parent, "prompts")],
    "a picture": lambda run, info: read(run, 0, run.shard(0).images[0]),
    "a picture in a tar": lambda run, info: read(run, 1, run.shard(1).images[0]),
    "what is in a tar": lambda run, info: members(run.tar_path(1)),
    "which tars there are": lambda run, info: tars(run, 1),
    "a picture that stands": lambda run, info: keep(run, run.shard(0).images[0], b"other bytes"),
    "which pictures have files": lambda run, info: own_files(run, info, 0),
    "what is missing": lambda run, info: missing_shards(run, info),
}


@pytest.mark.parametrize("call", [(Path, "open"), (os, "stat"), (os, "listdir")], ids=["open", "stat", "listing"])
@pytest.mark.parametrize("kind", READS)
def test_a_file_that_is_stale_twice_is_read_all_the_same(made, monkeypatch, kind, call):
    expected = READS[kind](made.run, made.info)
    stale(monkeypatch, *call, times=2)
    assert READS[kind](made.run, made.info) == expected


@pytest.mark.parametrize("code", [errno.ESTALE, errno.EAGAIN, errno.EINTR])
def test_each_read_has_its_tries(tmp_path, monkeypatch, code):
    (tmp_path / "a").write_bytes(b"abcdef")
    for look in (read_bytes, lambda path: read_end(path, 100), lambda path: patiently(path, Path.read_bytes)):
        with monkeypatch.context() as patch:
            left = stale(patch, Path, "open", TRIES - 1, code)
            assert (look(tmp_path / "a"), left) == (b"abcdef", [])
        with monkeypatch.context() as patch:
            stale(patch, Path, "open", TRIES, code)
            with pytest.raises(RunError, match=r"^cannot read .*/a: Stale file handle$"):
                look(tmp_path / "a")


def test_what_does_not_pass_is_not_tried_again(tmp_path, monkeypatch):
    left = stale(monkeypatch, Path, "open", 2, errno.EIO)
    with pytest.raises(RunError, match="cannot read"):
        read_bytes(tmp_path / "a")
    assert left == [errno.EIO]


def test_nothing_is_read_of_what_is_not_there(tmp_path):
    missing = tmp_path / "missing"
    assert (read_bytes(missing), read_end(missing, 5), if_there(missing, Path.stat), names_in(missing)) == (
        *(None, None, None),
        [],
    )


@pytest.mark.parametrize(("limit", "expected"), [(2, b"ef"), (6, b"abcdef"), (100, b"abcdef")])
def test_the_end_of_a_file(tmp_path, limit, expected):
    (tmp_path / "a").write_bytes(b"abcdef")
    assert read_end(tmp_path / "a", limit) == expected


def test_the_end_is_that_of_the_file_that_was_opened_though_its_name_is_given_to_a_longer_one(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"abcdef")
    (tmp_path / "b").write_bytes(bytes(1000))
    real = Path.open

    def replaced(path: Path, mode: str) -> object:
        file = real(path, mode)
        os.replace(tmp_path / "b", tmp_path / "a")
        return file

    monkeypatch.setattr(Path, "open", replaced)
    assert read_end(tmp_path / "a", 2) == b"ef"
