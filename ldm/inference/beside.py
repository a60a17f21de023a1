"""Threads beside the work, which must not slow it down. Needs no torch."""

from __future__ import annotations

import contextlib
import os
import threading

LEAST_PRIORITY = 19  # nice(7)


def give_way() -> None:
    """Have the calling thread work where no other wants the processor."""
    with contextlib.suppress(OSError):  # outside of Linux a thread has no priority of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LEAST_PRIORITY)


def processors() -> int:
    """How many processors this process may use, which Slurm sets with `--cpus-per-task`."""
    if hasattr(os, "sched_getaffinity"):  # on Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
