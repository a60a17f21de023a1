"""Submitting to a Slurm that takes jobs and runs none: what is asked first, and what follows the last picture."""

from __future__ import annotations

import json
import re

import pytest

from jobs.cli import main
from jobs.cluster.queue import known_jobs
from jobs.commands.making import start
from jobs.config import read_settings
from jobs.submit.launch import note_forgotten
from jobs.worker.worker import Worker, run_shard
from ldm.errors import SchedulerError
from tests.jobs.fake_slurm import FakeSlurm
from tests.jobs.support import FakeModel, prepare

SITE = "cluster=scnet-dcu", "images_per_shard=2"
POST = "post=[verify,report]"


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    return FakeSlurm(tmp_path / "slurm", monkeypatch)


def begin(prepared, *words: str) -> int:
    return start(prepared.run, prepared.info, read_settings(words, prepared.info.settings), main)


def make_all(prepared) -> None:
    for shard in range(prepared.info.plan.shards):
        run_shard(prepared.run.shard(shard), prepared.run, FakeModel(), Worker("one", "fake", batch_size=2))


def dependencies(slurm: FakeSlurm) -> list[str]:
    """What each job that was taken waits for, "" for nothing."""
    found = [re.search(r"^#SBATCH --dependency=(\S+)$", script, re.MULTILINE) for script in slurm.scripts]
    return [match[1] if match else "" for match in found]


def named(prepared, *numbers: str) -> list[str]:
    return [f"{number}:{prepared.run.path.name}" for number in numbers]


def behind(prepared, number: str, state: str = "PENDING") -> str:
    return f"{number}:{prepared.run.path.name}-after:{state}"


def test_what_it_costs_and_when_it_begins_is_asked_before_it_is_submitted(tmp_path, slurm, capsys):
    prepared = prepare(tmp_path, *SITE)
    assert begin(prepared, "seconds_per_image=60") == 0
    assert next(words.split()[:2] for words in slurm.asked if words != "squeue") == ["sbatch", "--test-only"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "submitted 3 tasks: 12"
    assert lines[1].startswith("python -m jobs status ")
    assert lines[2].startswith("about 0.10 card-hours")
    assert lines[3] == "Slurm expects the first task to begin at 2026-01-02T03:04:05"


def test_links_are_not_counted_as_tasks(tmp_path, slurm, capsys):
    assert begin(prepare(tmp_path, *SITE), "requeue=false", "links=2") == 0
    assert capsys.readouterr().out.startswith("submitted 3 tasks in 2 links: 12 13\n")
    assert dependencies(slurm) == ["", "afterany:12"]


def test_a_refusal_names_what_is_in_the_queue_already(tmp_path, slurm):
    slurm.take_at_most(1)
    prepared = prepare(tmp_path, *SITE, "cluster.max_array_size=2")
    with pytest.raises(SchedulerError, match=r"QOSMax.*; 12 are in the queue and stay there: python -m jobs resume"):
        begin(prepared)
    assert known_jobs(prepared.run) == {"12"}


def test_a_queue_that_keeps_silent_is_not_submitted_to_twice(tmp_path, slurm):
    prepared = prepare(tmp_path, *SITE)
    begin(prepared)
    slurm.silence()
    with pytest.raises(SchedulerError, match="squeue does not answer"):
        begin(prepared)
    assert len(slurm.scripts) == 1


def test_an_array_that_was_not_noted_is_found_by_what_submitit_left(tmp_path, slurm, capsys):
    """As where the process was killed between sbatch and its own note."""
    prepared = prepare(tmp_path, *SITE)
    begin(prepared)
    noted = prepared.run.submissions()
    prepared.run.submissions_path.unlink()
    slurm.queue(*named(prepared, "12_0", "12_1", "12_2"))
    assert begin(prepared) == 0
    assert "nothing to submit: job 12 will make what is missing" in capsys.readouterr().out
    again = prepared.run.submissions()
    assert [{**line, "submitted": ""} for line in again] == [{**line, "submitted": ""} for line in noted]
    note_forgotten(prepared.run)
    assert prepared.run.submissions() == again


def test_what_was_refused_is_not_noted(tmp_path, slurm):
    slurm.take_at_most(0)
    prepared = prepare(tmp_path, *SITE)
    with pytest.raises(SchedulerError):
        begin(prepared)
    note_forgotten(prepared.run)
    assert prepared.run.submissions() == []


def test_every_submission_has_a_folder_of_its_own(tmp_path, slurm):
    prepared = prepare(tmp_path, *SITE, "cluster.max_array_size=2")
    begin(prepared, POST)
    folders = [line["tasks"][0]["logs"][0].partition("/")[0] for line in prepared.run.submissions()]
    assert folders == ["001", "002", "003"]
    assert json.loads((prepared.run.logs / "002" / "begun.json").read_text())["elements"] == [[2]]


def test_one_job_follows_all_arrays(tmp_path, slurm):
    begin(prepare(tmp_path, *SITE, "cluster.max_array_size=2"), POST)
    assert dependencies(slurm) == ["", "", "afterany:12:13"]
    assert "export SDBATCH_STEPS='verify report'" in slurm.scripts[-1]


def test_what_follows_waits_for_the_last_link(tmp_path, slurm):
    begin(prepare(tmp_path, *SITE), POST, "requeue=false", "links=2")
    assert dependencies(slurm)[-1] == "afterany:12:13"


def test_a_job_that_was_refused_behind_the_pictures_is_submitted_by_the_next_resume(tmp_path, slurm):
    slurm.take_at_most(1)
    prepared = prepare(tmp_path, *SITE)
    with pytest.raises(SchedulerError, match=r"verify, report could not be submitted: .* python -m jobs resume"):
        begin(prepared, POST)
    slurm.take_at_most(9)
    slurm.queue(*named(prepared, "12_0", "12_1", "12_2"))
    assert begin(prepared, POST) == 0
    assert dependencies(slurm) == ["", "afterany:12"]
    slurm.queue(*named(prepared, "12_0", "12_1", "12_2"), behind(prepared, "13"))
    assert begin(prepared, POST) == 0
    assert len(slurm.scripts) == 2, "once is enough"


def test_a_resume_beside_running_arrays_replaces_what_waits_behind_them(tmp_path, slurm):
    prepared = prepare(tmp_path, *SITE)
    begin(prepared, POST)
    slurm.queue(*named(prepared, "12_0"), behind(prepared, "13"))
    assert begin(prepared, POST) == 0
    assert dependencies(slurm) == ["", "afterany:12", "", "afterany:12:14"]
    assert slurm.asked[-1] == "scancel --quiet 13"


@pytest.mark.parametrize(("state", "taken"), [("PENDING", 0), ("RUNNING", 0), (None, 1)])
def test_of_a_whole_run_the_steps_are_done_unless_a_job_will_do_them(tmp_path, slurm, state, taken):
    prepared = prepare(tmp_path, *SITE)
    make_all(prepared)
    prepared.run.add_submission({"tasks": [{"job": "7", "shards": [], "logs": []}]})
    slurm.queue(*([] if state is None else [behind(prepared, "7", state)]))
    assert begin(prepared, POST) == 0
    assert dependencies(slurm) == [""] * taken


def test_nothing_follows_where_nothing_was_asked_for(tmp_path, slurm):
    prepared = prepare(tmp_path, *SITE)
    make_all(prepared)
    assert begin(prepared) == 0
    assert slurm.scripts == []


def test_of_a_whole_run_here_the_steps_are_done_here(tmp_path):
    prepared = prepare(tmp_path)
    make_all(prepared)
    begin(prepared, "post=[report]")
    assert (prepared.run.path / "report.html").is_file()
