"""Each process keeps one small file on itself, and all of them can be read without a listing of the run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from jobs.attendance import Attendance, Attendant, End, attend, read_attendances

PLAIN = Attendance(
    worker="dcu1/12_3/99",
    host="dcu1",
    job="12",
    task="3",
    rank=1,
    pid=99,
    card="2",
    shards=(4, 5),
    started=1000.0,
    updated=1000.0,
)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def attendant(tmp_path: Path) -> Attendant:
    return Attendant(tmp_path / "workers", PLAIN, clock=Clock())


def on_disk(folder: Path) -> Attendance:
    [found] = read_attendances(folder / "workers")
    return found


def test_it_is_there_from_the_start(tmp_path, attendant):
    assert on_disk(tmp_path) == PLAIN
    assert [path.name for path in (tmp_path / "workers" / "12").iterdir()] == ["3-1-0-dcu1-99.json"]


def test_equal_processes_of_two_machines_have_a_file_each(tmp_path):
    for host in ("login01", "login02"):
        Attendant(tmp_path / "workers", dataclasses.replace(PLAIN, host=host, job="", task="", rank=0))
    assert [each.host for each in read_attendances(tmp_path / "workers")] == ["login01", "login02"]


def test_without_a_scheduler_a_day_has_a_folder(tmp_path):
    day = 24 * 3600.0
    for started in (1000.0, day - 1, day):
        Attendant(tmp_path / "workers", dataclasses.replace(PLAIN, job="", pid=int(started), started=started))
    folders = {folder.name: len(list(folder.iterdir())) for folder in (tmp_path / "workers").iterdir()}
    assert folders == {"local-19700101": 2, "local-19700102": 1}


def test_progress_is_written_once_a_minute(tmp_path, attendant):
    attendant._clock.now = 1059.0
    attendant.update(made=5)
    assert on_disk(tmp_path).made == 0
    attendant._clock.now = 1060.0
    attendant.update(made=6)
    assert (on_disk(tmp_path).made, on_disk(tmp_path).updated) == (6, 1060.0)


def test_what_a_reader_waits_for_is_written_at_once(tmp_path, attendant):
    attendant._clock.now = 1001.0
    attendant.update(loading=1.0)
    assert on_disk(tmp_path).loading == 1.0


def test_the_first_last_word_stays(tmp_path, attendant):
    attendant.leave(End.ERROR, "the card is lost")
    attendant.leave(End.DONE)
    assert (on_disk(tmp_path).end, on_disk(tmp_path).message) == (End.ERROR, "the card is lost")
    assert on_disk(tmp_path).ended == 1000.0


def test_all_processes_are_read_oldest_first_and_what_is_no_such_file_is_passed_over(tmp_path):
    folder = tmp_path / "workers"
    for number, (job, started) in enumerate([("12", 3.0), ("", 1.0), ("13", 2.0)]):
        Attendant(folder, dataclasses.replace(PLAIN, job=job, pid=number, started=started))
    (folder / "12" / ".x.json.0123456789ab.part").write_text("{")
    (folder / "12" / "torn.json").write_text('{"worker": ')
    (folder / "12" / "other.json").write_text(json.dumps({"of": "another version"}))
    assert [(each.job, each.pid) for each in read_attendances(folder)] == [("", 1), ("13", 2), ("12", 0)]
    assert read_attendances(tmp_path / "nowhere") == []


def test_a_process_knows_its_job_from_slurm(tmp_path):
    environ = {
        "SLURMD_NODENAME": "dcu1",
        "SLURM_ARRAY_JOB_ID": "12",
        "SLURM_ARRAY_TASK_ID": "3",
        "SLURM_JOB_ID": "15",
        "SLURM_PROCID": "1",
    }
    now = attend(tmp_path, environ, "one").now
    assert (now.host, now.job, now.task, now.rank) == ("dcu1", "12", "3", 1)
    assert attend(tmp_path, {"SLURM_JOB_ID": "7", "SLURMD_NODENAME": "a"}, "two").now.job == "7"
    assert attend(tmp_path, {}, "three").now.job == ""
