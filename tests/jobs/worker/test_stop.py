"""A worker stops before its time is up, when it is told to and when it is paused, and drops only what would last."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time

import pytest

from jobs.attendance import End
from jobs.worker import stop
from jobs.worker.stop import Halt, Limits


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def take(limits: Limits, clock: Clock, seconds: float) -> None:
    with limits.batch():
        clock.now += seconds


def halted(limits: Limits) -> Halt:
    with pytest.raises(Halt) as halt:
        limits.check()
    return halt.value


def test_without_a_limit_nothing_ends(clock):
    limits = Limits(clock=clock)
    for _ in range(3):
        limits.check()
        take(limits, clock, 1e6)
    assert not limits.spent()


def test_the_next_batch_is_begun_only_if_one_as_long_as_the_longest_fits(clock):
    """Batches of 8 s at most, so 10 s and 10 s to leave: the last begins 20 s before the end."""
    limits = Limits(deadline=1100.0, clock=clock)
    take(limits, clock, 8.0)
    take(limits, clock, 2.0)
    clock.now = 1080.0
    limits.check()
    clock.now = 1080.1
    halt = halted(limits)
    assert (halt.end, halt.reason) == (End.OUT_OF_TIME, "20 s are left and the next batch needs 20 s")
    assert limits.spent()


@pytest.mark.parametrize(("writing", "needed"), [(4.0, 10 + 4 + 10), (16.0, 20 + 16 + 10)])
def test_time_is_left_to_write_the_batch_before_and_then_the_last(clock, writing, needed):
    """Batches of 8 s; the one before is written while the last is sampled, or for longer."""
    limits = Limits(deadline=1100.0, clock=clock)
    take(limits, clock, 8.0)
    with limits.writing():
        clock.now += writing
    clock.now = 1100.0 - needed
    limits.check()
    clock.now += 0.1
    assert halted(limits).reason == f"{needed} s are left and the next batch needs {needed} s"


def test_a_slow_batch_long_ago_counts_no_more(clock):
    limits = Limits(deadline=1100.0, clock=clock)
    for seconds in (40.0, *[1.0] * 8):
        take(limits, clock, seconds)
    limits.check()


def test_a_batch_that_failed_tells_nothing_of_the_next(clock):
    limits = Limits(deadline=1100.0, clock=clock)
    with contextlib.suppress(ValueError), limits.batch():
        clock.now += 80
        raise ValueError("it came to nothing")
    limits.check()


def test_a_pause_is_looked_for_every_five_seconds(tmp_path, clock):
    limits = Limits(pause_path=tmp_path / "pause", clock=clock)
    limits.check()
    (tmp_path / "pause").touch()
    clock.now += 4.9
    limits.check()
    clock.now += 0.1
    assert halted(limits).end is End.PAUSED


@pytest.mark.parametrize(("number", "seconds"), [(signal.SIGTERM, 3), (signal.SIGUSR2, 30)])
def test_a_signal_lets_a_batch_end_that_is_nearly_done_and_drops_another(clock, number, seconds):
    limits = Limits(clock=clock)
    with limits.listening():
        take(limits, clock, 100)
        with limits.batch():
            clock.now += 100 - seconds
            os.kill(os.getpid(), number)
        assert halted(limits).reason == f"{signal.Signals(number).name} came"
        with pytest.raises(Halt):
            dropped(limits, clock, 99 - seconds, number)


def dropped(limits: Limits, clock: Clock, seconds: float, number: int) -> None:
    with limits.batch():
        clock.now += seconds
        os.kill(os.getpid(), number)
        raise AssertionError("the batch went on")


def test_a_signal_ends_a_sleep_at_once():
    limits = Limits()
    timer = threading.Timer(0.05, os.kill, [os.getpid(), signal.SIGTERM])
    timer.start()
    with pytest.raises(Halt):
        sleep_for_an_hour(limits)
    timer.join()


def sleep_for_an_hour(limits: Limits) -> None:
    with limits.listening(), limits.droppable():
        time.sleep(3600)


def test_a_signal_that_comes_within_a_finalizer_ends_the_batch_all_the_same(monkeypatch):
    """Python prints what a finalizer raises, and goes on."""
    monkeypatch.setattr(stop, "AGAIN_SECONDS", 0.05)
    lost = []
    monkeypatch.setattr(sys, "unraisablehook", lost.append)
    with pytest.raises(Halt):
        sleep_for_an_hour_behind_a_finalizer(Limits())
    assert [each.exc_type for each in lost] == [Halt]
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL


def sleep_for_an_hour_behind_a_finalizer(limits: Limits) -> None:
    class Finalized:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            while True:  # until the handler is called
                time.sleep(0.01)

    with limits.listening(), limits.droppable():
        Finalized()
        time.sleep(3600)


def test_between_batches_a_signal_waits_for_the_next_check():
    limits = Limits()
    with limits.listening():
        os.kill(os.getpid(), signal.SIGTERM)
        assert halted(limits).end is End.TOLD_TO_STOP


def test_a_warning_that_comes_once_the_work_is_over_ends_nothing():
    """Python takes its handlers away before it ends, and Slurm may warn in that moment."""
    with Limits().listening():
        pass
    os.kill(os.getpid(), signal.SIGUSR2)
    assert signal.getsignal(signal.SIGUSR2) is signal.SIG_IGN


def test_who_was_told_to_stop_does_not_go_on_because_a_warning_follows():
    limits = Limits()
    with limits.listening():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR2)
        assert halted(limits).end is End.TOLD_TO_STOP


def test_a_signal_between_the_check_and_the_batch_keeps_the_batch_from_beginning():
    limits = Limits()
    with limits.listening():
        limits.check()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Halt), limits.batch():
            raise AssertionError("the batch began")
