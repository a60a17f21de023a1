"""The line that shows how far a run here has come: redrawn on a terminal, once a minute where output is kept."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Callable, List, Optional, TextIO, Type

from jobs.records import ShardSummary, read_summary
from jobs.rundir import RunDir, RunInfo

LOG_SECONDS = 60.0


class Progress:
    """Reads the records of the shards that are not done yet, whenever it is asked to show them."""

    def __init__(
        self, run: RunDir, info: RunInfo, output: Optional[TextIO] = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._run = run
        self._output = output or sys.stderr
        self._clock = clock
        self._planned = info.plan.images
        self._open: List[int] = list(range(info.plan.shards))
        self._closed: List[ShardSummary] = []
        self._started = self._shown = clock()
        self._before = sum(summary.made for summary in self._read())

    def __enter__(self) -> Progress:
        self._draw()
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self._draw()
        if self._output.isatty():
            self._output.write("\n")

    def show(self) -> None:
        """Show how far the run is, unless that was done a moment ago."""
        if self._output.isatty() or self._clock() - self._shown >= LOG_SECONDS:
            self._draw()

    def line(self) -> str:
        """For example `12/40 pictures, 1 failed, 0.82 images/s, 34 s left`."""
        summaries = self._read()
        made, failed = sum(each.made for each in summaries), sum(each.failed for each in summaries)
        parts = [f"{made}/{self._planned} pictures"]
        if failed:
            parts.append(f"{failed} failed")
        seconds = self._clock() - self._started
        if made > self._before and seconds > 0:
            rate = (made - self._before) / seconds
            parts += [f"{rate:.2f} images/s", f"{(self._planned - made - failed) / rate:.0f} s left"]
        return ", ".join(parts)

    def _draw(self) -> None:
        self._shown = self._clock()
        start, end = ("\r\033[K", "") if self._output.isatty() else ("", "\n")
        self._output.write(f"{start}{self.line()}{end}")
        self._output.flush()

    def _read(self) -> List[ShardSummary]:
        found = {shard: read_summary(self._run.records_path(shard)) for shard in self._open}
        present = [summary for summary in found.values() if summary is not None]
        self._closed += [summary for summary in present if summary.done]
        self._open = [shard for shard, summary in found.items() if summary is None or not summary.done]
        return self._closed + [summary for summary in present if not summary.done]
