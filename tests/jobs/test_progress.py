"""The progress line is redrawn on a terminal and comes rarely elsewhere."""

from __future__ import annotations

import io
import itertools

from jobs.progress import Progress
from jobs.worker import Worker, run_shard
from tests.jobs.support import FakeModel, prepare

WORKER = Worker(name="one", device="fake", batch_size=2)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def progress(prepared, output=None, times=()):
    clock = itertools.chain(times, itertools.count(100.0, 1.0))
    return Progress(prepared.run, prepared.info, output or io.StringIO(), clock=lambda: next(clock))


def test_the_line_counts_and_foresees(tmp_path):
    prepared = prepare(tmp_path)
    shown = progress(prepared, times=[0.0, 10.0])
    run_shard(prepared.run.shard(0), prepared.run, FakeModel(fail=["picture number 1"]), WORKER)
    assert shown.line() == "1/6 pictures, 1 failed, 0.10 images/s, 40 s left"


def test_pictures_of_an_earlier_run_do_not_count_for_the_rate(tmp_path):
    prepared = prepare(tmp_path)
    run_shard(prepared.run.shard(0), prepared.run, FakeModel(), WORKER)
    shown = progress(prepared, times=[0.0, 10.0, 20.0])
    assert shown.line() == "2/6 pictures"
    run_shard(prepared.run.shard(1), prepared.run, FakeModel(), WORKER)
    assert shown.line() == "4/6 pictures, 0.10 images/s, 20 s left"


def test_a_terminal_sees_one_line_that_changes(tmp_path):
    prepared, terminal = prepare(tmp_path), Terminal()
    with progress(prepared, terminal) as shown:
        run_shard(prepared.run.shard(0), prepared.run, FakeModel(), WORKER)
        shown.show()
    assert terminal.getvalue().count("\n") == 1
    assert terminal.getvalue().count("\r") == 3
    assert "2/6 pictures" in terminal.getvalue()


def test_a_file_gets_the_beginning_the_end_and_a_line_a_minute(tmp_path):
    prepared, file = prepare(tmp_path), io.StringIO()
    with progress(prepared, file, times=[0.0, 0.0, 0.0, 30.0, 61.0, 61.0, 61.0, 61.0]) as shown:
        shown.show()
        shown.show()
    assert file.getvalue().splitlines() == ["0/6 pictures"] * 3
