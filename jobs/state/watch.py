"""Looking at a run until it is over: redrawn on a terminal, a line a minute elsewhere."""

from __future__ import annotations

import contextlib
import itertools
import time
from typing import Callable, TextIO

from jobs.rundir import RunDir, RunInfo
from jobs.state.screen import Screen, is_screen
from jobs.state.status import Status, make_status
from jobs.state.status_text import format_line, format_status

LINE_SECONDS = 60.0
FIRST_SECONDS = 2.0, 4.0, 8.0  # a small run is over before a first usual look


def watch(
    run: RunDir,
    info: RunInfo,
    output: TextIO,
    every: float,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Status:
    """Show the run every so many seconds until it is finished, or nothing of it runs or waits any more; its last state.

    Where the queue cannot be asked only a finished run ends this, and the user.
    """
    on_screen = is_screen(output)
    shown = -LINE_SECONDS
    with contextlib.ExitStack() as stack:
        screen = stack.enter_context(Screen(output)) if on_screen else None
        for pause in itertools.chain(FIRST_SECONDS, itertools.repeat(every)):
            status = make_status(run, info)
            over = is_over(status)
            if screen is not None:
                report = status.report
                settled = report.done + report.failed
                screen.show(settled, report.planned, f"{100 * settled // report.planned} %", format_status(status))
            elif over or clock() - shown >= LINE_SECONDS:
                shown = clock()
                output.write("\n".join(format_status(status) if over else [format_line(status)]) + "\n")
                output.flush()
            if over:
                return status
            sleep(min(pause, every))
    raise AssertionError("the pauses never end")


def is_over(status: Status) -> bool:
    """Whether nothing more will happen by itself."""
    return (status.report.finished and not status.present) or status.idle
