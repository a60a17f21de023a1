"""What squeue and sacct print is read as it is, oddities included; a site without them is no error."""

from __future__ import annotations

import dataclasses
import os
import stat
import subprocess
import time

import pytest

from jobs.attendance import End
from jobs.cluster.queue import (
    JobState,
    ask,
    busy_shards,
    ended_jobs,
    expand_nodes,
    known_jobs,
    live_jobs,
    parse_duration,
    parse_queue,
)
from tests.jobs.crew import Scheduler, attended
from tests.jobs.support import prepare

QUEUE = """\
12_0|12|RUNNING|None|1:58:03|dcu1|{name}
12_1|12|PENDING|ReqNodeNotAvail, UnavailableNodes:dcu3|2:00:00||{name}
12_2|12|PENDING|JobHeldUser|2:00:00||{name}
12_3|12|COMPLETING|None|INVALID|dcu2|{name}
13|13|RUNNING|None|UNLIMITED|dcu[1-2]|another name|with a bar
40_7|40|RUNNING|None|1-00:00:10|gpu1|{name}
41_0|41|PENDING|Priority|2:00:00||{name}
slurm_load_jobs: some warning
"""


def submitted(run, *tasks):
    described = [{"job": job, "shards": shards, "logs": [f"{job}.out"]} for job, shards in tasks]
    run.add_submission({"tasks": described})


def test_the_lines_of_squeue_are_read():
    states = parse_queue(QUEUE.format(name="a-20240223"))
    assert states["12_0"] == JobState("RUNNING", "", "dcu1", 7083, "12", "a-20240223")
    assert states["12_1"].reason == "ReqNodeNotAvail, UnavailableNodes:dcu3"
    assert states["13"].name == "another name|with a bar"
    assert list(states) == ["12_0", "12_1", "12_2", "12_3", "13", "40_7", "41_0"]


@pytest.mark.parametrize(
    ("state", "reason", "expected"),
    [
        ("RUNNING", "", "running, will work"),
        ("SUSPENDED", "", "running, will work"),
        ("CONFIGURING", "", "running, will work"),
        ("COMPLETING", "", "running"),
        ("PENDING", "Resources", "waiting, will work"),
        ("PENDING", "JobHeldUser", "waiting, held, will work"),
        ("PENDING", "job requeued in held state", "waiting, held"),
        ("PENDING", "launch failed requeued held", "waiting, held"),
        ("PENDING", "DependencyNeverSatisfied", "waiting"),
        ("COMPLETED", "", ""),
        ("NODE_FAIL", "", ""),
    ],
)
def test_what_a_state_means(state, reason, expected):
    job = JobState(state, reason, "", None, "1", "x")
    words = ("running", "waiting", "held", "will_work")
    assert ", ".join(word.replace("_", " ") for word in words if getattr(job, word)) == expected


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0:07", 7), ("3:04", 184), ("02:03:04", 7384), ("1-00:00:10", 86410), ("UNLIMITED", None), ("NOT_SET", None)],
)
def test_times_of_slurm_are_seconds(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "nodes"),
    [
        ("dcu1", ["dcu1"]),
        ("", []),
        ("dcu[1-3,07],gpu1", ["dcu1", "dcu2", "dcu3", "dcu07", "gpu1"]),
        ("a[08-10]b,c-d[2,4]", ["a08b", "a09b", "a10b", "c-d2", "c-d4"]),
        ("r[1-2]n[1-2]", ["r[1-2]n[1-2]"]),
    ],
)
def test_lists_of_nodes_are_spelled_out(text, nodes):
    assert list(expand_nodes(text)) == nodes


def test_the_jobs_of_a_run_are_those_that_were_submitted_worked_on_it_or_log_into_it(tmp_path):
    run = prepare(tmp_path).run
    submitted(run, ("12_0", [0]), ("12_1", [1]), ("local-77", [2]))
    attended(run, job="40", task="7")
    scheduler = Scheduler(
        ("squeue", QUEUE.format(name=run.path.name)), ("scontrol", f"   StdOut={run.logs}/41_0.log\n")
    )
    assert known_jobs(run) == {"12", "40"}
    assert set(live_jobs(run, scheduler)) == {"12_0", "12_1", "12_2", "12_3", "40_7", "41_0"}
    assert [command[:3] for command in scheduler.asked[1:]] == [["scontrol", "show", "job"]]


def test_a_job_of_the_same_name_that_logs_elsewhere_is_another_runs(tmp_path):
    run = prepare(tmp_path).run
    scheduler = Scheduler(
        ("squeue", QUEUE.format(name=run.path.name)), ("scontrol", "   StdOut=/elsewhere/logs/41_0.log\n")
    )
    assert live_jobs(run, scheduler) == {}
    assert len(scheduler.asked) == 4  # once a job, not once a task


def test_a_queue_that_cannot_be_asked_is_none_and_an_empty_one_is_empty(tmp_path):
    run = prepare(tmp_path).run
    assert live_jobs(run, Scheduler()) is None
    assert live_jobs(run, Scheduler(("squeue", ""))) == {}


def test_only_this_users_jobs_and_the_owners_are_asked_for(tmp_path):
    scheduler = Scheduler(("squeue", ""))
    live_jobs(prepare(tmp_path).run, scheduler)
    [command] = scheduler.asked
    assert command[command.index("-u") + 1] == str(os.getuid())


def program(folder, name, text):
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_a_command_is_tried_once_and_never_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    program(tmp_path, "squeue", f"echo asked >> {tmp_path}/asked; exit 1")
    assert ask(["squeue"]) is None
    assert (tmp_path / "asked").read_text() == "asked\n"
    assert ask(["no-such-command"]) is None
    program(tmp_path, "sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    assert ended_jobs(["12_0"], ask) == {}


def test_a_silent_controller_costs_no_more_than_the_given_time(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    program(tmp_path, "squeue", "exec sleep 60")
    given = []
    real = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *words, **more: given.append(more["timeout"]) or real(*words, **more))
    assert ask(["squeue"], seconds=0.2) is None
    assert given == [0.2]


def test_a_users_own_filters_of_squeue_do_not_hide_jobs(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    monkeypatch.setenv("SQUEUE_STATES", "COMPLETED")
    program(tmp_path, "squeue", 'echo "states: $SQUEUE_STATES"')
    assert ask(["squeue"]) == "states: \n"


def test_how_jobs_ended_is_read_from_sacct():
    text = "12_0|NODE_FAIL|0:0\n12_1|CANCELLED by 1000|0:15\n12_2|RUNNING|0:0\n12_[3-9%2]|PENDING|0:0\n13|FAILED|0:53\n"
    scheduler = Scheduler(("sacct", text))
    assert ended_jobs(["12_0", "13", "local-5"], scheduler) == {
        "12_0": "NODE_FAIL",
        "12_1": "CANCELLED 0:15",
        "13": "FAILED 0:53",
    }
    assert scheduler.asked[0][scheduler.asked[0].index("-j") + 1] == "12,13"


def test_sacct_is_not_asked_for_nothing():
    scheduler = Scheduler()
    assert ended_jobs(["local-5"], scheduler) == {}
    assert scheduler.asked == []


def job(state, reason="", node=""):
    return JobState(state, reason, node, None, "1", "x")


def test_shards_of_jobs_that_run_or_wait_are_busy(tmp_path):
    run = prepare(tmp_path, count=12).run
    submitted(run, ("1_0", [0]), ("1_1", [1]), ("1_2", [2]), ("1_3", [3]), ("1_4", [4]))
    live = {
        "1_0": job("RUNNING"),
        "1_1": job("PENDING", "Priority"),
        "1_2": job("COMPLETING"),
        "1_3": job("PENDING", "DependencyNeverSatisfied"),
    }
    assert busy_shards(run, live) == {0, 1}


def test_shards_of_a_rendered_files_tasks_are_known_by_their_workers(tmp_path):
    run = prepare(tmp_path).run
    attended(run, job="40", task="0", shards=(0,))
    attended(run, job="40", task="1", shards=(1,))
    attended(run, job="40", task="2", shards=(2,), end=End.OUT_OF_TIME)
    live = {"40_0": job("RUNNING"), "40_2": job("PENDING", "BeginTime")}
    assert busy_shards(run, live) == {0, 2}


def test_shards_whose_process_has_left_are_free_though_others_of_its_task_work_on(tmp_path):
    """Two cards: one process failed, the other has an hour to go."""
    run = prepare(tmp_path).run
    task = {"job": "12_0", "shards": [0, 1], "logs": []}
    run.add_submission({"submitted": "", "scheduler": "slurm", "tasks": [task], "script": ""})
    attended(run, job="12", task="0", rank=0, shards=(0,), end=End.ERROR)
    attended(run, job="12", task="0", rank=1, shards=(1,))
    assert busy_shards(run, {"12_0": job("RUNNING")}) == {1}
    assert busy_shards(run, {"12_0": job("PENDING", "BeginTime")}) == {0, 1}, "it is started anew with both"


def test_an_interrupted_step_of_an_allocation_keeps_nothing(tmp_path):
    run = prepare(tmp_path).run
    attended(run, job="77", task="", shards=(0, 1), end=End.TOLD_TO_STOP)
    assert busy_shards(run, {"77": job("RUNNING")}) == set()


def test_a_process_that_was_killed_in_an_allocation_keeps_nothing_for_long(tmp_path):
    run = prepare(tmp_path).run
    long_ago = time.time() - 3600
    attended(run, job="77", task="", shards=(0, 1), started=long_ago, updated=long_ago)
    assert busy_shards(run, {"77": job("RUNNING")}) == set()
    attended(run, job="77", task="", rank=1, shards=(2,))
    assert busy_shards(run, {"77": job("RUNNING")}) == {2}
    attended(run, job="77", task="", rank=1, pid=2, shards=(2,), started=time.time(), end=End.DONE)
    assert busy_shards(run, {"77": job("RUNNING")}) == set(), "another has been in its place since"


def test_what_a_link_gave_up_is_the_next_ones(tmp_path):
    run = prepare(tmp_path).run
    tasks = [{"job": job, "shards": [0, 1], "logs": []} for job in ("12_0", "13_0")]
    run.add_submission({"submitted": "", "scheduler": "slurm", "tasks": tasks, "script": ""})
    attended(run, job="12", task="0", rank=0, shards=(0,), end=End.ERROR)
    attended(run, job="12", task="0", rank=1, shards=(1,))
    live = {"12_0": job("RUNNING"), "13_0": job("PENDING", "Dependency")}
    assert busy_shards(run, live) == {0, 1}


def test_of_a_task_that_began_anew_the_newest_processes_count(tmp_path):
    run = prepare(tmp_path).run
    run.add_submission({"tasks": [{"job": "12_0", "shards": [0, 1], "logs": []}]})
    before = time.time() - 3600
    attended(run, job="12", task="0", rank=0, shards=(0,), started=before, updated=before, end=End.OUT_OF_TIME)
    attended(run, job="12", task="0", rank=0, pid=2, shards=(0,), end=End.ERROR)
    attended(run, job="12", task="0", rank=1, pid=3, shards=(1,))
    assert busy_shards(run, {"12_0": job("RUNNING")}) == {1}


def test_a_rendered_file_that_waits_may_make_everything(tmp_path):
    run = prepare(tmp_path).run
    waiting = dataclasses.replace(job("PENDING", "Priority"), name=run.path.name)
    assert busy_shards(run, {"40_[0-2]": waiting}) == {0, 1, 2}
    assert busy_shards(run, {"41": dataclasses.replace(waiting, name=run.name_after)}) == set()


def test_a_job_behind_the_pictures_that_nobody_noted_is_known_by_its_name(tmp_path):
    run = prepare(tmp_path).run
    answers = (
        ("squeue", f"41|41|PENDING|Dependency|1:00||{run.name_after}\n"),
        ("scontrol", f"   StdOut={run.logs}/x.log\n"),
    )
    assert list(live_jobs(run, Scheduler(*answers)) or {}) == ["41"]


def test_without_a_queue_a_fresh_sign_of_life_counts(tmp_path):
    run = prepare(tmp_path).run
    attended(run, job="40", task="0", shards=(0,))
    attended(run, job="40", task="1", shards=(1,), updated=time.time() - 3600)
    attended(run, job="40", task="2", shards=(2,), end=End.DONE)
    assert busy_shards(run, None) == {0}
