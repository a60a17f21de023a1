"""How a run stands is told from its files, with the queue as a bonus, in words and as JSON, quickly."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import time
from pathlib import Path

import pytest

from jobs.attendance import End
from jobs.records import RecordBook
from jobs.state import watch as watching
from jobs.state.status import Status, make_status
from jobs.state.status_text import format_line, format_status, to_json
from jobs.state.watch import is_over, watch
from jobs.worker.worker import Worker, run_shard
from tests.jobs.crew import Scheduler, attended
from tests.jobs.support import FakeModel, jobs, prepare

SLURM = "cluster=scnet-dcu"
DCU1 = "dcu1/12_0/1"


def make(prepared, shard, worker=DCU1, **model):
    run_shard(prepared.run.shard(shard), prepared.run, FakeModel(**model), Worker(worker, "fake", 2))


def status_of(prepared, *rows) -> Status:
    """The status when squeue prints these rows, or gives no answer if they are None."""
    answers = [] if rows == (None,) else [("squeue", "".join(f"{row}|{prepared.run.path.name}\n" for row in rows))]
    return make_status(prepared.run, prepared.info, Scheduler(*answers))


def test_a_planned_run_waits_for_somebody(tmp_path):
    status = status_of(prepare(tmp_path))
    assert (status.report.missing, status.present, status.seconds_left) == (6, (), None)
    assert status.idle
    assert format_status(status)[2] == "now: nobody at work"


def test_who_is_at_work_where_and_how_fast(tmp_path):
    prepared = prepare(tmp_path, SLURM)
    make(prepared, 0)
    attended(prepared.run, job="12", shards=(0, 1), card="2", usage=97.0)
    status = status_of(prepared, "12_0|12|RUNNING|None|1:00:00|dcu1")
    [present] = status.present
    assert (present.host, present.job, present.card, present.usage) == ("dcu1", "12_0", "2", 97.0)
    assert present.shards == (1,)  # the first is done
    assert (present.made, present.seconds_left, present.loading) == (2, 3600, False)
    assert present.silent_for < 60
    assert present.images_per_second > 0
    assert status.seconds_left == pytest.approx(4 / present.images_per_second)
    text = "\n".join(format_status(status))
    assert "now: 1 at work, " in text
    assert "97 %" in text
    assert "1 job running" in text


def test_those_who_load_count_for_the_time_left_as_if_they_were_like_the_others(tmp_path):
    prepared = prepare(tmp_path, SLURM)
    make(prepared, 0)
    attended(prepared.run, job="12", shards=(0, 1))
    attended(prepared.run, job="12", task="1", shards=(2,), loading=None)
    status = status_of(prepared, "12_0|12|RUNNING|None|1:00|dcu1", "12_1|12|RUNNING|None|1:00|dcu1")
    speed = status.images_per_second
    assert status.seconds_left == pytest.approx(4 / (2 * speed))
    assert "loading" in "\n".join(format_status(status))


def test_what_waits_is_told_with_its_reason(tmp_path):
    prepared = prepare(tmp_path, SLURM)
    prepared.run.add_submission({"tasks": [{"job": "12_0", "shards": [0], "logs": []}]})
    status = status_of(
        prepared,
        "12_0|12|PENDING|Resources|2:00:00|",
        "12_1|12|PENDING|Priority|2:00:00|",
        "12_2|12|PENDING|Priority|2:00:00|",
        "12_3|12|PENDING|JobHeldUser|2:00:00|",
    )
    assert dataclasses.asdict(status.queued) == {"running": 0, "pending": {"Priority": 2, "Resources": 1}, "held": 1}
    assert not status.idle
    assert format_line(status).endswith("nobody at work, 3 jobs pending (2 Priority, 1 Resources), 1 job held")


def test_a_worker_whose_job_is_gone_is_lost_with_its_node(tmp_path):
    prepared = prepare(tmp_path, SLURM)
    make(prepared, 0)
    attended(prepared.run, job="12", host="dcu3", shards=(0, 1, 2), updated=time.time() - 720)
    scheduler = Scheduler(("squeue", ""), ("sacct", "12_0|NODE_FAIL|0:0\n"))
    status = make_status(prepared.run, prepared.info, scheduler)
    [lost] = status.lost
    assert (lost.host, lost.shards, lost.state, lost.certain) == ("dcu3", (1, 2), "NODE_FAIL", True)
    [line] = [line for line in format_status(status) if line.startswith("lost")]
    assert line == "lost on dcu3: a worker (job 12_0, NODE_FAIL), last sign of life 12 min ago, shards 1-2"
    assert status.idle


def test_a_worker_that_was_lost_matters_no_more_once_its_shards_are_done(tmp_path):
    prepared = prepare(tmp_path, SLURM)
    make(prepared, 0)
    attended(prepared.run, job="12", shards=(0,))
    status = status_of(prepared)
    assert len(status.lost) == 1
    assert not any(line.startswith("lost on") for line in format_status(status))


def test_without_an_answer_the_files_alone_are_believed(tmp_path):
    prepared = prepare(tmp_path, SLURM)
    attended(prepared.run, job="12", shards=(0,))
    attended(prepared.run, job="12", task="1", host="dcu2", shards=(1,), updated=time.time() - 3600)
    status = status_of(prepared, None)
    assert [each.host for each in status.present] == ["dcu1"]
    assert [(each.host, each.certain) for each in status.lost] == [("dcu2", False)]
    text = "\n".join(format_status(status))
    assert "squeue gives no answer" in text
    assert "not heard of on dcu2: a worker (job 12_1), last sign of life 60 min ago, shards 1" in text
    assert not status.idle


def test_a_run_without_slurm_asks_nobody(tmp_path):
    prepared = prepare(tmp_path)
    scheduler = Scheduler()
    status = make_status(prepared.run, prepared.info, scheduler)
    assert scheduler.asked == []
    assert status.idle


def test_a_node_on_which_workers_keep_failing_is_named(tmp_path):
    prepared = prepare(tmp_path, SLURM)
    for task in range(3):
        attended(prepared.run, job="12", task=str(task), host="dcu9", end=End.ERROR)
    attended(prepared.run, job="12", task="9", host="dcu1", end=End.DONE)
    assert "dcu9 keeps failing: 3 workers one after the other" in format_status(status_of(prepared))


def test_a_node_whose_failures_are_a_day_old_is_not_named(tmp_path):
    prepared, then = prepare(tmp_path, SLURM), time.time() - 90_000
    for task in range(3):
        attended(prepared.run, job="12", task=str(task), host="dcu9", started=then, updated=then + 1, end=End.ERROR)
    attended(prepared.run, job="12", task="9", host="dcu1", end=End.DONE)
    assert "dcu9" not in format_status(status_of(prepared))


def test_start_up_and_money_are_told(tmp_path):
    prepared = prepare(tmp_path, SLURM, "cluster.price_per_card_hour=2", "cluster.currency=CNY")
    make(prepared, 0)
    now = time.time()
    for task in range(2):
        attended(prepared.run, job="12", task=str(task), started=now - 3600, updated=now, loading=360.0, end=End.DONE)
    [line] = [line for line in format_status(status_of(prepared)) if "card-hours" in line]
    assert line.endswith(" images/s by all, 2.00 card-hours, cost 4.00 CNY, start-up 10.0 % of them")


def test_a_pause_is_told(tmp_path):
    prepared = prepare(tmp_path)
    prepared.run.pause_path.touch()
    assert "paused: workers end between batches; resume the run to go on" in format_status(status_of(prepared))


def test_of_many_workers_the_quietest_are_shown(tmp_path):
    prepared = prepare(tmp_path, SLURM)
    now = time.time()
    for task in range(40):
        attended(prepared.run, job="12", task=str(task), host=f"dcu{task}", shards=(0,), updated=now - 10 * task)
    rows = [f"12_{task}|12|RUNNING|None|1:00|dcu{task}" for task in range(40)]
    lines = format_status(status_of(prepared, *rows))
    shown = [line for line in lines if line.startswith("  dcu")]
    assert len(shown) == 16
    assert shown[-1].startswith("  dcu39 ")
    assert "(silent)" in shown[-1]
    assert "  and 24 more, heard of since" in lines


def test_the_same_as_json(tmp_path):
    prepared = prepare(tmp_path)
    make(prepared, 0)
    attended(prepared.run, job="", task="", host="elsewhere", shards=(1,))
    values = json.loads(json.dumps(to_json(status_of(prepared))))
    assert (values["planned"], values["done"], values["missing"], values["finished"]) == (6, 2, 4, False)
    assert values["present"][0]["host"] == "elsewhere"
    assert values["queued"] == {"running": 0, "pending": {}, "held": 0}
    printed = json.loads(jobs("status", str(prepared.run.path), "--json", cwd=tmp_path).stdout)
    assert printed.keys() == values.keys()


def synthetic(tmp_path, shards):
    """A Slurm run of so many shards, two pictures each, all but a tenth of them done by four tasks."""
    prepared = prepare(tmp_path, SLURM, count=2 * shards)
    first = prepared.run.shard(0)
    for shard in range(shards * 9 // 10):
        path, shard_of_plan = prepared.run.records_path(shard), dataclasses.replace(first, index=shard)
        RecordBook(path, shard_of_plan, worker="w", device="d").leave()
    for task in range(4):
        attended(prepared.run, job="12", task=str(task), shards=tuple(range(task, shards, 4)))
    return prepared


def test_no_folder_is_listed_but_those_of_the_workers(tmp_path, monkeypatch):
    prepared = synthetic(tmp_path, 40)
    listed = []
    for name in ("listdir", "scandir"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda path=".", real=real: listed.append(os.fspath(path)) or real(path))
    status_of(prepared)
    workers = str(prepared.run.workers)
    assert set(listed) == {workers, f"{workers}/12"}


def test_no_record_is_read_twice(tmp_path, monkeypatch):
    prepared, opened, real = synthetic(tmp_path, 40), [], Path.open
    monkeypatch.setattr(Path, "open", lambda path, *words, **more: opened.append(path) or real(path, *words, **more))
    status_of(prepared)
    records = [path for path in opened if path.parent.name == "records"]
    assert sorted(records) == [prepared.run.records_path(shard) for shard in range(40)]


@pytest.fixture
def looks(monkeypatch):
    """Each look of `watch` gets the next of these statuses."""
    waiting = []
    monkeypatch.setattr(watching, "make_status", lambda run, info: waiting.pop(0))
    return waiting


def test_watching_ends_with_the_run_a_line_a_minute(tmp_path, looks):
    prepared = prepare(tmp_path, SLURM)
    prepared.run.add_submission({"tasks": [{"job": "12_0", "shards": [0], "logs": []}]})
    pending = status_of(prepared, "12_0|12|PENDING|Priority|1:00|")
    for shard in range(3):
        make(prepared, shard)
    looks += [pending] * 7 + [status_of(prepared)]
    output, slept = io.StringIO(), []
    last = watch(prepared.run, prepared.info, output, 20.0, slept.append, clock=lambda: sum(slept))
    assert last.report.finished
    assert slept == [2.0, 4.0, 8.0, *[20.0] * 4], "soon at first; and it ends with the run, not with the minute"
    lines = output.getvalue().splitlines()
    assert lines[:2] == ["0/6 pictures, nobody at work, 1 job pending (Priority)"] * 2
    assert lines[2] == "6 of 6 pictures done (100 %), 0 flagged, 0 failed, 0 missing"


def test_a_terminal_is_redrawn(tmp_path, looks, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "xterm")
    prepared = prepare(tmp_path, SLURM)
    first = dataclasses.replace(status_of(prepared, None), present=())
    for shard in range(3):
        make(prepared, shard)
    looks += [first, status_of(prepared)]
    output, slept = Terminal(), []
    watch(prepared.run, prepared.info, output, 2.0, slept.append)
    assert slept == [2.0]
    assert "0 of 6 pictures" in output.getvalue()
    assert "6 of 6 pictures" in output.getvalue()


@pytest.mark.parametrize(
    ("rows", "over"),
    [((None,), False), ((), True), (("12_0|12|PENDING|Priority|1:00|",), False)],
    ids=["no answer", "empty queue", "something waits"],
)
def test_a_run_that_misses_pictures_is_over_when_nothing_of_it_runs_or_waits(tmp_path, rows, over):
    prepared = prepare(tmp_path, SLURM)
    prepared.run.add_submission({"tasks": [{"job": "12_0", "shards": [0], "logs": []}]})
    assert is_over(status_of(prepared, *rows)) is over


def test_watch_ends_with_the_status_of_the_run(tmp_path):
    prepared = prepare(tmp_path)
    done = jobs("watch", str(prepared.run.path), cwd=tmp_path)
    assert (done.returncode, done.stdout.splitlines()[2]) == (4, "now: nobody at work")
    for shard in range(3):
        make(prepared, shard)
    assert jobs("watch", str(prepared.run.path), cwd=tmp_path).returncode == 0
    assert "--every must be above 0" in jobs("watch", str(prepared.run.path), "--every", "0", cwd=tmp_path).stderr
