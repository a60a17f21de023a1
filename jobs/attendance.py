"""Who is, or was, at work on a run: one small file a process, written by that process alone.

    workers/<job>/<task>-<rank>-<restart>-<host>-<pid>.json       without Slurm <job> is the day: local-20240223

It is replaced at the start, once the model is loaded, every minute, and at the end. A file without an end whose job is
no longer in the queue is that of a process that was killed, perhaps with its node.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import enum
import json
import os
import re
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, List, Mapping, Optional, Tuple

from jobs.reading import names_in, read_bytes
from ldm.inference.files import write_atomically

UPDATE_SECONDS = 60.0


class End(enum.Enum):
    """How a process left. ERROR speaks against its node when it repeats there."""

    DONE = "done"  # nothing of its share is left, but for pictures that failed
    OUT_OF_TIME = "out of time"  # stopped by itself before its limit, or when Slurm warned it
    TOLD_TO_STOP = "told to stop"  # by SIGTERM or SIGINT: cancelled, preempted
    PAUSED = "paused"
    ERROR = "error"


@dataclass(frozen=True)
class Attendance:
    """One process on a run. Times are seconds since 1970; `loading` is how long it took until the first picture could
    begin, None until then. `usage` is how busy its card was when last asked, in per cent.
    """

    worker: str
    host: str
    job: str
    task: str
    rank: int
    pid: int
    card: str
    shards: Tuple[int, ...]
    started: float
    updated: float
    device: str = ""
    loading: Optional[float] = None
    made: int = 0
    failed: int = 0
    usage: Optional[float] = None
    ended: Optional[float] = None
    end: Optional[End] = None
    message: str = ""


class Attendant:
    """Keeps this process's own file."""

    def __init__(self, folder: Path, attendance: Attendance, clock: Callable[[], float] = time.time) -> None:
        """`folder`: workers/ of the run. Writes the file."""
        restart = os.environ.get("SLURM_RESTART_COUNT", "0")
        words = (attendance.task or "0", str(attendance.rank), restart, attendance.host, str(attendance.pid))
        self._path = folder / (attendance.job or _day(attendance.started)) / f"{'-'.join(words)}.json"
        self._clock = clock
        self.now = attendance
        self._write()

    @property
    def is_due(self) -> bool:
        """Whether the last writing is a minute old."""
        return self._clock() - self.now.updated >= UPDATE_SECONDS

    def update(self, **changes: object) -> None:
        """Note what has changed; it is written at most once a minute, but for what a reader waits for."""
        self.now = dataclasses.replace(self.now, **changes)  # type: ignore[arg-type]
        if {"shards", "loading", "end"} & changes.keys() or self.is_due:
            self._write()

    def leave(self, end: End, message: str = "") -> None:
        """Write the last word; the first one stays if there is one already."""
        if self.now.end is None:
            self.update(end=end, ended=self._clock(), message=message)

    def _write(self) -> None:
        self.now = dataclasses.replace(self.now, updated=self._clock())
        values = {**dataclasses.asdict(self.now), "end": self.now.end and self.now.end.value}
        write_atomically(self._path, json.dumps(values, ensure_ascii=False).encode("utf-8"))


def attend(folder: Path, environ: Mapping[str, str], worker: str) -> Attendant:
    """Begin this process's file in workers/ of a run, before it knows its rank, its card and its shards."""
    now = time.time()
    return Attendant(
        folder,
        Attendance(
            worker=worker,
            host=environ.get("SLURMD_NODENAME") or socket.gethostname(),
            job=environ.get("SLURM_ARRAY_JOB_ID", environ.get("SLURM_JOB_ID", "")),
            task=environ.get("SLURM_ARRAY_TASK_ID", ""),
            rank=int(environ.get("SLURM_PROCID", "0")),
            pid=os.getpid(),
            card="",
            shards=(),
            started=now,
            updated=now,
        ),
    )


def read_attendances(folder: Path) -> List[Attendance]:
    """Every process that was ever at work, oldest first; one listing a job, no recursion. A file that cannot be
    understood is passed over: it is another version's.
    """
    found: List[Attendance] = []
    for job in sorted(names_in(folder)):
        for path in (folder / job / name for name in sorted(names_in(folder / job))):
            if re.fullmatch(r"[^.].*\.json", path.name):
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    values = json.loads(read_bytes(path) or b"")
                    end = None if values["end"] is None else End(values["end"])
                    found.append(Attendance(**{**values, "end": end, "shards": tuple(values["shards"])}))
    return sorted(found, key=lambda each: each.started)


def _day(seconds: float) -> str:
    """The folder of processes that no scheduler started; one for all days would grow without a limit."""
    return f"local-{datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc):%Y%m%d}"
