"""Progress is a bar that is redrawn on a terminal, and comes as a line a minute elsewhere."""

from __future__ import annotations

import io
import itertools

import pytest

from jobs.state.progress import Progress
from jobs.worker.worker import Worker, run_shard
from tests.jobs.support import FakeModel, prepare

WORKER = Worker(name="one", device="fake", batch_size=2)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def terminal_of_80_columns(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")


def progress(prepared, output=None, times=()):
    clock = itertools.chain(times, itertools.count(100.0, 1.0))
    return Progress(prepared.run, prepared.info, output or io.StringIO(), clock=lambda: next(clock))


def make(prepared, shard, **model):
    run_shard(prepared.run.shard(shard), prepared.run, FakeModel(**model), WORKER)


def test_the_line_counts_and_foresees(tmp_path):
    prepared = prepare(tmp_path, count=8)
    shown = progress(prepared, times=[0.0, 60.0, 70.0])
    make(prepared, 0, fail=["picture number 1"])
    assert shown.line() == "1/8 pictures, 1 failed"
    make(prepared, 1)
    assert shown.line() == "3/8 pictures, 1 failed, 0.20 images/s, 20 s left"


def test_the_time_that_loading_took_does_not_slow_what_is_foreseen(tmp_path):
    prepared = prepare(tmp_path)
    shown = progress(prepared, times=[0.0, 1000.0, 1001.0])
    make(prepared, 0)
    assert shown.line() == "2/6 pictures"
    make(prepared, 1)
    assert shown.line() == "4/6 pictures, 2.00 images/s, 1 s left"


def test_pictures_of_an_earlier_run_do_not_count_for_the_rate(tmp_path):
    prepared = prepare(tmp_path, count=8)
    make(prepared, 0)
    shown = progress(prepared, times=[0.0, 10.0, 20.0, 30.0])
    assert shown.line() == "2/8 pictures"
    make(prepared, 1)
    assert shown.line() == "4/8 pictures"
    make(prepared, 2)
    assert shown.line() == "6/8 pictures, 0.20 images/s, 10 s left"


def test_a_finished_run_has_no_time_left(tmp_path):
    prepared = prepare(tmp_path)
    shown = progress(prepared, times=[0.0, 1.0, 2.0])
    make(prepared, 0)
    shown.line()
    for shard in (1, 2):
        make(prepared, shard)
    assert shown.line() == "6/6 pictures, 4.00 images/s"


def test_a_terminal_sees_one_bar_that_changes(tmp_path):
    prepared, terminal = prepare(tmp_path), Terminal()
    with progress(prepared, terminal) as shown:
        make(prepared, 0)
        shown.show()
    text = terminal.getvalue()
    assert "0/6 pictures" in text
    assert "2/6 pictures" in text
    assert "━" in text
    assert text.count("\n") == 1


def test_a_terminal_that_cannot_redraw_gets_lines(tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    terminal = Terminal()
    with progress(prepare(tmp_path), terminal):
        pass
    assert terminal.getvalue().splitlines() == ["0/6 pictures"] * 2


def test_a_file_gets_the_beginning_the_end_and_a_line_a_minute(tmp_path):
    prepared, file = prepare(tmp_path), io.StringIO()
    with progress(prepared, file, times=[0.0, 0.0, 0.0, 30.0, 61.0, 61.0, 61.0, 61.0]) as shown:
        shown.show()
        shown.show()
    assert file.getvalue().splitlines() == ["0/6 pictures"] * 3


def test_an_error_inside_leaves_the_terminal_in_order(tmp_path):
    terminal = Terminal()

    def fail():
        with progress(prepare(tmp_path), terminal):
            raise RuntimeError("the worker died")

    with pytest.raises(RuntimeError, match="the worker died"):
        fail()
    assert terminal.getvalue().rstrip("\n").endswith("\x1b[?25h")  # the cursor is shown again
