"""A run under way can be paused, cancelled, and told to try its failed pictures again; nothing else is touched."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys

import pytest

from jobs.records import ATTEMPTS, read_records, read_summary
from jobs.state.report import make_report
from jobs.submit.steer import cancel, failed_shards, forget_failures, pause, unpause
from jobs.worker.worker import Worker, run_shard
from ldm.errors import OutputError, SchedulerError
from tests.jobs.crew import Scheduler, attended
from tests.jobs.support import FakeModel, jobs, prepare, write_prompts

BAD = "picture number 1"


def make(prepared, shard, **model):
    return run_shard(prepared.run.shard(shard), prepared.run, FakeModel(**model), Worker("one", "fake", 2))


def queue(*rows):
    """Rows of squeue: id, number, name; they run on dcu1."""
    return "".join(f"{task}|{number}|RUNNING|None|1:00|dcu1|{name}\n" for task, number, name in rows)


def test_a_run_is_paused_once_and_goes_on_once(tmp_path):
    run = prepare(tmp_path).run
    assert pause(run)
    assert run.pause_path.exists()
    assert not pause(run)
    assert unpause(run)
    assert not run.pause_path.exists()
    assert not unpause(run)


def test_a_run_that_may_not_be_written_says_so(tmp_path):
    run = prepare(tmp_path).run
    run.path.rename(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match=r"cannot write .*pause"):
        pause(run)


class Commands:
    def __init__(self) -> None:
        self.given = []

    def __call__(self, command):
        self.given.append(list(command))
        return ""


def test_every_job_of_the_run_is_cancelled_and_no_other(tmp_path):
    run = prepare(tmp_path).run
    name = run.path.name
    run.add_submission(
        {"tasks": [{"job": "12_0", "shards": [0], "logs": []}, {"job": "12_1", "shards": [1], "logs": []}]}
    )
    attended(run, job="40", task="7")
    rows = queue(("12_0", "12", name), ("12_1", "12", name), ("40_7", "40", name), ("50", "50", "another"))
    command = Commands()
    ended = cancel(run, Scheduler(("squeue", rows)), command)
    assert command.given == [["scancel", "--quiet", "12", "40"]]
    assert (ended.jobs, ended.tasks, ended.spared) == (("12", "40"), 3, ())


def test_a_job_of_the_runs_name_is_cancelled_only_if_its_log_is_here(tmp_path):
    run = prepare(tmp_path).run
    rows, command = queue(("60_0", "60", run.path.name)), Commands()
    ended = cancel(run, Scheduler(("squeue", rows), ("scontrol", "   StdOut=/elsewhere/60_0.log\n")), command)
    assert (command.given, ended.jobs, ended.spared) == ([], (), ())
    ended = cancel(run, Scheduler(("squeue", rows), ("scontrol", f"   StdOut={run.logs}/60_0.log\n")), command)
    assert command.given == [["scancel", "--quiet", "60"]]


def test_an_interactive_allocation_that_helps_is_left_alone(tmp_path):
    run = prepare(tmp_path).run
    attended(run, job="70", task="")
    command = Commands()
    ended = cancel(run, Scheduler(("squeue", queue(("70", "70", "interactive")))), command)
    assert (command.given, ended.jobs, ended.spared) == ([], (), ("70",))


def test_a_queue_that_does_not_answer_is_an_error_where_there_are_jobs(tmp_path):
    run = prepare(tmp_path).run
    assert cancel(run, Scheduler(), Commands()).jobs == ()
    attended(run, job="12")
    with pytest.raises(SchedulerError, match=r"no job was cancelled; .* scancel the numbers 12"):
        cancel(run, Scheduler(), Commands())


@contextlib.contextmanager
def worker(word):
    code = "import sys; print('here', flush=True); sys.stdin.read()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code, "work", word], **pipes) as process:
        assert process.stdout.readline() == b"here\n"
        yield process
        process.stdin.close()


def test_processes_of_this_machine_are_told_to_stop(tmp_path):
    run = prepare(tmp_path).run
    with worker(str(run.path)) as own, worker(str(tmp_path)) as other:
        for process in (own, other):
            attended(run, job="", task="", host=socket.gethostname(), pid=process.pid)
        ended = cancel(run, Scheduler(), Commands())
        assert ended.processes == (own.pid,)
        assert own.wait(30) == -15
        assert other.poll() is None


def test_failures_are_forgotten_and_all_else_is_kept(tmp_path):
    prepared = prepare(tmp_path)
    for _ in range(ATTEMPTS):
        make(prepared, 0, fail=[BAD])
    make(prepared, 1, flag=["picture number 2"])
    before = [prepared.run.records_path(shard).read_bytes() for shard in (0, 1)]
    report = make_report(prepared.run, prepared.info)
    assert (report.failed, report.quarantined) == (1, 1)
    assert failed_shards(prepared.run, prepared.info) == {0}

    assert forget_failures(prepared.run, prepared.info) == 1
    records, summary = read_records(prepared.run.records_path(0)), read_summary(prepared.run.records_path(0))
    assert (list(records.images), records.failures) == ([0], {})
    assert (summary.done, summary.made, summary.failed) == (False, 1, 0)
    assert before[0].splitlines()[0] == prepared.run.records_path(0).read_bytes().splitlines()[0]
    assert before[1] == prepared.run.records_path(1).read_bytes()
    assert make_report(prepared.run, prepared.info).missing == 3

    assert make(prepared, 0).done
    assert make_report(prepared.run, prepared.info).failed == 0


def test_failures_that_a_worker_is_at_are_left_to_it(tmp_path):
    prepared = prepare(tmp_path)
    make(prepared, 0, fail=[BAD])
    before = prepared.run.records_path(0).read_bytes()
    assert forget_failures(prepared.run, prepared.info, busy=[0]) == 0
    assert prepared.run.records_path(0).read_bytes() == before


def test_a_prompt_about_errors_is_no_failure(tmp_path):
    (tmp_path / "words").mkdir()
    prepared = prepare(tmp_path / "words")
    make(prepared, 0, fail=[BAD])
    path = prepared.run.records_path(0)
    data = path.read_bytes().replace(b'"prompt":"picture number 0"', b'"prompt":"say \\"error\\": \\"failed\\": 1"')
    path.write_bytes(data)
    forget_failures(prepared.run, prepared.info)
    assert list(read_records(path).images) == [0]


def test_pause_and_cancel_by_hand(tmp_path):
    prepared = prepare(tmp_path)
    path = str(prepared.run.path)
    done = jobs("pause", path, cwd=tmp_path)
    assert done.stdout.splitlines() == [
        "paused: workers end between batches",
        f"python -m jobs resume outputs/{prepared.run.path.name} goes on",
    ]
    assert "paused" in jobs("status", path, cwd=tmp_path).stdout
    assert jobs("pause", path, cwd=tmp_path).stdout.splitlines()[0] == "the run is paused already"
    done = jobs("cancel", path, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "nothing of this run is in the queue or at work here\n")


def test_where_no_picture_has_failed_retry_starts_nothing(tmp_path):
    write_prompts(tmp_path)
    run = jobs("plan", "prompts.txt", "model=rehearsal", "steps=1", cwd=tmp_path).stdout.strip()
    done = jobs("retry", run, "--failed", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"no picture has failed; python -m jobs resume {run} makes what is missing\n"
    assert list((tmp_path / run).glob("workers/*")) == []


@pytest.mark.parametrize("command", ["pause", "cancel", "retry", "watch", "logs"])
def test_what_is_no_run_is_not_steered(tmp_path, command):
    done = jobs(command, "nowhere", cwd=tmp_path)
    assert done.returncode == 2
    assert "is no run folder" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_failed_pictures_are_made_once_the_reason_is_gone(tmp_path):
    start = tmp_path / "start.png"
    start.write_text("planned")
    (tmp_path / "two.jsonl").write_text('{"prompt": "a", "init": "start.png", "strength": 1.0}\n{"prompt": "b"}\n')
    run = jobs("plan", "two.jsonl", "model=rehearsal", "steps=1", cwd=tmp_path).stdout.strip()
    start.write_text("changed")
    assert jobs("resume", run, cwd=tmp_path).returncode == 4
    start.write_text("planned")
    done = jobs("retry", run, "--failed", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1 failed picture may be tried again" in done.stderr
    assert done.stdout.startswith("2 of 2 pictures done (100 %)")
