"""Who is at work, who has left and who was lost follows from each process's own file and the queue."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time

import pytest

from jobs.attendance import End
from jobs.cluster.presence import Presence, lost_workers, presences
from jobs.cluster.processes import works_here
from jobs.cluster.queue import JobState
from tests.jobs.crew import attendance
from tests.jobs.support import prepare

LONG_AGO, SOON = -3600.0, 5.0  # seconds from now


def job(state="RUNNING", node="dcu1"):
    return JobState(state, "", node, None, "12", "x")


@pytest.mark.parametrize(
    ("changes", "live", "presence"),
    [
        ({"end": End.DONE}, {}, Presence.LEFT),
        ({"end": End.ERROR}, {"12_0": job()}, Presence.LEFT),
        ({}, {"12_0": job()}, Presence.AT_WORK),
        ({"updated": LONG_AGO}, {"12_0": job()}, Presence.AT_WORK),
        ({"host": "dcu2"}, {"12_0": job(node="dcu[1-2]")}, Presence.AT_WORK),
        ({"task": ""}, {"12": job()}, Presence.AT_WORK),
        ({}, {}, Presence.LOST),
        ({}, {"12_1": job()}, Presence.LOST),
        ({}, {"12_0": job("PENDING", node="")}, Presence.LOST),
        ({}, {"12_0": job("NODE_FAIL")}, Presence.LOST),
        ({"host": "dcu2"}, {"12_0": job()}, Presence.LOST),
        ({"started": SOON}, {}, Presence.AT_WORK),
        ({}, None, Presence.AT_WORK),
        ({"updated": LONG_AGO}, None, Presence.SILENT),
        ({"job": "", "task": "", "host": "elsewhere"}, {}, Presence.AT_WORK),
        ({"job": "", "task": "", "host": "elsewhere", "updated": LONG_AGO}, {}, Presence.SILENT),
        ({"job": "", "task": "", "host": socket.gethostname()}, {}, Presence.LOST),
    ],
    ids=lambda value: value.name if isinstance(value, Presence) else None,
)
def test_where_a_process_is(tmp_path, changes, live, presence):
    run, now = prepare(tmp_path).run, time.time()
    changes = {name: now + value if isinstance(value, float) else value for name, value in changes.items()}
    [(_, found)] = presences(run, [attendance(**changes)], live, now)
    assert found is presence


def test_a_process_whose_place_another_took_later_was_lost(tmp_path):
    run, now = prepare(tmp_path).run, time.time()
    first = attendance(started=now - 600, updated=now - 500, pid=1)
    other = attendance(started=now - 599, rank=1, pid=2)
    second = attendance(started=now - 400, pid=3)
    live = {"12_0": job()}
    assert lost_workers(run, [first, other, second], live, now) == [first]
    assert [each for each, _ in presences(run, [first, other, second], live, now)] == [first, other, second]


@contextlib.contextmanager
def started(*, cwd, word):
    """A process with the command line of a worker, as it would describe itself; it lives as long as the block."""
    code = "import sys; print('here', flush=True); sys.stdin.read()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code, "work", word], cwd=cwd, **pipes) as process:
        assert process.stdout.readline() == b"here\n"
        yield attendance(job="", task="", host=socket.gethostname(), pid=process.pid)
        process.stdin.close()


@pytest.mark.parametrize("relative", [False, True])
def test_a_living_process_of_this_machine_is_at_work(tmp_path, relative):
    run = prepare(tmp_path).run
    word = os.path.join("outputs", run.path.name) if relative else str(run.path)
    with started(cwd=tmp_path, word=word) as each:
        assert works_here(run, each)
        assert lost_workers(run, [each], {}, time.time()) == []
    assert not works_here(run, each)
    assert lost_workers(run, [each], {}, time.time()) == [each]


def test_a_number_that_another_process_got_proves_nothing(tmp_path):
    run = prepare(tmp_path).run
    with started(cwd=tmp_path, word=str(tmp_path / "another-run")) as each:
        assert not works_here(run, each)
