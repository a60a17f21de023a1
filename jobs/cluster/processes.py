"""Workers that are processes of this very machine: whether one still lives, told by its command line."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path
from typing import List

from jobs.attendance import Attendance
from jobs.rundir import RunDir


def works_here(run: RunDir, attendance: Attendance) -> bool:
    """Whether this attendance is of a living process here. Its number alone proves nothing: numbers are used again."""
    if attendance.end is not None or attendance.host != socket.gethostname():
        return False
    words = _command_line(attendance.pid)
    return "work" in words and any(_names(run, word, attendance.pid) for word in words)


def _command_line(pid: int) -> List[str]:
    with contextlib.suppress(OSError):
        data = Path(f"/proc/{pid}/cmdline").read_bytes()  # empty for one that has ended and was not waited for
        return [os.fsdecode(word) for word in data.split(b"\0")]
    return []


def _names(run: RunDir, word: str, pid: int) -> bool:
    """Whether a word of a process's command line is the run folder, as it is seen from where the process stands."""
    with contextlib.suppress(OSError, ValueError):
        return bool(word) and os.path.realpath(os.path.join(f"/proc/{pid}/cwd", word)) == os.path.realpath(run.path)
    return False
