"""What is done behind the work is done in order, one thing at a time, and what it raises comes out."""

from __future__ import annotations

import threading
from typing import Callable

import pytest

from jobs.worker.behind import Behind


def fail() -> None:
    raise OSError("no space")


def test_the_caller_goes_on_meanwhile_and_settling_waits():
    begun, go_on, done = threading.Event(), threading.Event(), []

    def slow() -> None:
        begun.set()
        assert go_on.wait(30)
        done.append(threading.current_thread())

    with Behind() as behind:
        behind.submit(slow)
        assert begun.wait(30)
        assert done == []
        go_on.set()
        behind.settle()
        assert [thread is threading.current_thread() for thread in done] == [False]


def test_what_was_begun_is_done_at_the_end_whatever_came():
    done = []
    with pytest.raises(KeyError):
        break_off_behind(lambda: done.append(1))
    assert done == [1]


def break_off_behind(do: Callable[[], object]) -> None:
    with Behind() as behind:
        behind.submit(do)
        raise KeyError("of the caller")


def test_a_failure_comes_out_at_the_next_settling_and_only_there():
    with Behind() as behind:
        behind.submit(fail)
        with pytest.raises(OSError, match="no space"):
            behind.settle()
        behind.settle()


def test_a_failure_of_the_last_comes_out_at_the_end_and_names_what_the_caller_met():
    with pytest.raises(OSError, match="no space") as failure:
        break_off_behind(fail)
    assert isinstance(failure.value.__context__, KeyError)


def test_no_more_than_one_thing_may_wait():
    with Behind() as behind:
        behind.submit(lambda: None)
        with pytest.raises(RuntimeError, match="settle what was submitted"):
            behind.submit(lambda: None)


def test_no_thread_is_left():
    before = threading.active_count()
    with Behind() as behind:
        behind.submit(lambda: None)
    assert threading.active_count() == before
