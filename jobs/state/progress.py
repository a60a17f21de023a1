"""How far a run here has come: a bar on a terminal, a line a minute where output is kept."""

from __future__ import annotations

import contextlib
import sys
import time
from types import TracebackType
from typing import Callable, List, Optional, TextIO, Tuple, Type

from jobs.records import ShardSummary, read_summary
from jobs.rundir import RunDir, RunInfo
from jobs.state.screen import Screen, is_screen
from jobs.wording import duration, speed

LOG_SECONDS, SCREEN_SECONDS = 60.0, 0.5


class Progress:
    """Reads the records of the shards that are not done yet, whenever it is asked to show them."""

    def __init__(
        self, run: RunDir, info: RunInfo, output: Optional[TextIO] = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._run = run
        self._output = output or sys.stderr
        self._screen = Screen(self._output) if is_screen(self._output) else None
        self._clock = clock
        self._planned = info.plan.images
        self._open: List[int] = list(range(info.plan.shards))
        self._closed: List[ShardSummary] = []
        self._shown = clock()
        self._before = self._made(self._read())
        self._first: Optional[Tuple[float, int]] = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Progress:
        if self._screen is not None:
            self._stack.enter_context(self._screen)
        self._draw()
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        with self._stack:
            self._draw()

    def show(self) -> None:
        """Show how far the run is, unless that was done a moment ago."""
        if self._clock() - self._shown >= (LOG_SECONDS if self._screen is None else SCREEN_SECONDS):
            self._draw()

    def line(self) -> str:
        """For example `12/40 pictures, 1 failed, 0.82 images/s, 34 s left`."""
        return self._look()[1]

    def _draw(self) -> None:
        settled, line = self._look()
        self._shown = self._clock()
        if self._screen is None:
            self._output.write(f"{line}\n")
            self._output.flush()
        else:
            self._screen.show(settled, self._planned, line)

    def _look(self) -> Tuple[int, str]:
        """How many pictures need no more work, and the line. The speed is that since the first new pictures were
        there, so that it is not told too low while, and after, the model is loaded.
        """
        summaries, now = self._read(), self._clock()
        made, failed = self._made(summaries), sum(each.failed for each in summaries)
        parts = [f"{made}/{self._planned} pictures"]
        if failed:
            parts.append(f"{failed} failed")
        if self._first is None and made > self._before:
            self._first = now, made
        elif self._first is not None and made > self._first[1] and now > self._first[0]:
            rate = (made - self._first[1]) / (now - self._first[0])
            parts.append(speed(rate))
            if made + failed < self._planned:
                parts.append(f"{duration((self._planned - made - failed) / rate)} left")
        return made + failed, ", ".join(parts)

    @staticmethod
    def _made(summaries: List[ShardSummary]) -> int:
        return sum(summary.made for summary in summaries)

    def _read(self) -> List[ShardSummary]:
        found = {shard: read_summary(self._run.records_path(shard)) for shard in self._open}
        present = [summary for summary in found.values() if summary is not None]
        self._closed += [summary for summary in present if summary.done]
        self._open = [shard for shard, summary in found.items() if summary is None or not summary.done]
        return self._closed + [summary for summary in present if not summary.done]
