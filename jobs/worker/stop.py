"""When a worker stops before its share is done: its time is up, it was told to, or a user paused the run.

Between batches it asks; within one, a signal ends it at once unless the batch is nearly done. Slurm's limit comes with
SIGTERM and, KillWait later (30 s at most sites), SIGKILL; a warning (`--signal`, preemption) comes as SIGUSR2.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import deque
from pathlib import Path
from types import FrameType
from typing import Callable, Deque, Dict, Iterator, Optional

from jobs.attendance import End

# How many seconds a batch may still take once a signal has come.
WARNED_SECONDS, TOLD_SECONDS = 30.0, 3.0
SIGNALS: Dict[int, End] = {
    signal.SIGUSR1: End.OUT_OF_TIME,
    signal.SIGUSR2: End.OUT_OF_TIME,
    signal.SIGTERM: End.TOLD_TO_STOP,
    signal.SIGINT: End.TOLD_TO_STOP,
}
WARNINGS = (signal.SIGUSR1, signal.SIGUSR2)
RECENT_BATCHES = 8
# Of the longest recent batch, and what leaving takes once it is written down: the next one is begun only with this
# much left.
BATCHES_LEFT, LEAVING_SECONDS = 1.25, 10.0
PAUSE_LOOK_SECONDS = 5.0
# What a handler raises is lost where it interrupts a finalizer, whose exceptions Python ignores: so it is raised again.
AGAIN_SECONDS = 1.0


class Halt(BaseException):
    """The worker stops here. Not an Exception: nothing that mends a batch may take it for a failure."""

    def __init__(self, end: End, reason: str) -> None:
        super().__init__(reason)
        self.end = end
        self.reason = reason


class Limits:
    """How long this process may go on. Times are seconds since 1970."""

    def __init__(
        self,
        deadline: Optional[float] = None,
        pause_path: Optional[Path] = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`deadline`: when the scheduler ends the job. `pause_path`: work ends once something is there."""
        self._deadline = deadline
        self._pause_path = pause_path
        self._clock = clock
        self._started = clock()
        self._looked = -PAUSE_LOOK_SECONDS
        self._told: Optional[Halt] = None
        self._begun: Optional[float] = None
        self._recent: Deque[float] = deque(maxlen=RECENT_BATCHES)
        self._written: Deque[float] = deque(maxlen=RECENT_BATCHES)

    def spent(self) -> bool:
        """Whether most of the time that this process had is over."""
        return self._deadline is not None and 2 * (self._clock() - self._started) > self._deadline - self._started

    def check(self) -> None:
        """Raise Halt if the next batch must not begin."""
        if self._told is not None:
            raise self._told
        now = self._clock()
        if self._pause_path is not None and now - self._looked >= PAUSE_LOOK_SECONDS:
            self._looked = now
            if os.path.lexists(self._pause_path):  # does not raise where a server is away for a moment
                raise Halt(End.PAUSED, f"{self._pause_path} is there")
        sampling, writing = max(self._recent, default=0.0), max(self._written, default=0.0)
        # The batch before it is written meanwhile, its own after that.
        needed = BATCHES_LEFT * max(sampling, writing) + writing + LEAVING_SECONDS
        if self._deadline is not None and self._recent and now + needed > self._deadline:
            left = self._deadline - now
            raise Halt(End.OUT_OF_TIME, f"{left:.0f} s are left and the next batch needs {needed:.0f} s")

    @contextlib.contextmanager
    def batch(self) -> Iterator[None]:
        """Around the making of a batch, whose time tells what the next will need."""
        begun = self._clock()
        with self.droppable():
            yield
        self._recent.append(self._clock() - begun)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Around the writing down of a batch, while no other thread checks."""
        begun = self._clock()
        yield
        self._written.append(self._clock() - begun)

    @contextlib.contextmanager
    def droppable(self) -> Iterator[None]:
        """Around what costs only its time: inside, a signal raises Halt, unless it is a batch that is nearly done."""
        self._begun = self._clock()
        try:
            if self._told is not None:  # a signal that came before the line above found nothing to drop
                raise self._told
            yield
        finally:
            self._begun = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, signals are taken; submitit's own handlers, which ignore SIGTERM, among those that are replaced.

        Warnings are ignored from then on: there is nothing left to stop, and a process whose work is done would die of
        one while Python ends, or be put back into the queue by submitit.
        """
        before = {number: signal.signal(number, self._take) for number in SIGNALS}
        before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._take_again)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in before.items():
                # None: it was set by no Python, and cannot be had back.
                signal.signal(number, signal.SIG_IGN if number in WARNINGS else handler or signal.SIG_DFL)

    def _take(self, number: int, frame: Optional[FrameType]) -> None:
        if self._told is None:  # the first says why: who was told to stop does not go on because a warning follows
            self._told = Halt(SIGNALS[number], f"{signal.Signals(number).name} came")
        if self._begun is None:
            return
        allowed = TOLD_SECONDS if SIGNALS[number] is End.TOLD_TO_STOP else WARNED_SECONDS
        expected = max(self._recent, default=float("inf")) - (self._clock() - self._begun)
        if expected > allowed:
            self._take_again(number, frame)

    def _take_again(self, number: int, frame: Optional[FrameType]) -> None:
        if self._told is None or self._begun is None:
            return
        if signal.getsignal(signal.SIGALRM) == self._take_again:
            signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS)
        raise self._told
