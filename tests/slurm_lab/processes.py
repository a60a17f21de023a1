"""Watching processes from outside, for tests that kill things: nothing here waits a fixed time."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Callable, Set, TypeVar

Value = TypeVar("Value")

PATIENCE_S = 600  # a machine may be busy with other work; a free one needs a hundredth of it


def eventually(probe: Callable[[], Value]) -> Value:
    """Ask until the answer is true, and give it back; the last answer, however false, when the time is over."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        answer = probe()
        if answer or time.monotonic() > deadline:
            return answer
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    """Whether a process lives; one that has ended but is not reaped does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def processes_of(folder: Path) -> Set[int]:
    """The processes that work for the cluster in a folder: its name is in their command line or their environment."""
    return {pid for pid in map(int, _numbers()) if is_running(pid) and str(folder) in _words(pid)}


def _numbers() -> Set[str]:
    return {entry.name for entry in Path("/proc").iterdir() if entry.name.isdigit()}


def _words(pid: int) -> str:
    words = ""
    for name in ("cmdline", "environ"):
        try:
            words += Path(f"/proc/{pid}/{name}").read_text(errors="replace")
        except OSError:  # ended meanwhile, or not ours
            continue
    return words
