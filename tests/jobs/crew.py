"""Processes that were, or are, at work on a run, as far as their files tell, and a scheduler with ready answers."""

from __future__ import annotations

import time
from typing import List, Optional, Sequence, Tuple

from jobs.attendance import Attendance, Attendant
from jobs.rundir import RunDir


class Scheduler:
    """Answers commands by their first word; None, as one that is not here, to all others. Keeps what it was asked."""

    def __init__(self, *answers: Tuple[str, str]) -> None:
        self.asked: List[List[str]] = []
        self._answers = dict(answers)

    def __call__(self, command: Sequence[str]) -> Optional[str]:
        self.asked.append(list(command))
        return self._answers.get(command[0])


def attendance(**changes: object) -> Attendance:
    """One process; it gave its last sign of life just now unless `updated` or `ended` say otherwise."""
    now = time.time()
    values = {
        "worker": f"{changes.get('host', 'dcu1')}/{changes.get('job', '12')}_{changes.get('task', '0')}/1",
        "host": "dcu1",
        "job": "12",
        "task": "0",
        "rank": 0,
        "pid": 1,
        "card": "0",
        "shards": (),
        "started": now - 600,
        "updated": now,
        "loading": 6.0,
        **changes,
    }
    if values.get("end") is not None:
        values.setdefault("ended", values["updated"])
    return Attendance(**values)  # type: ignore[arg-type]


def attended(run: RunDir, **changes: object) -> Attendance:
    """Write the file of one process, as it would have."""
    each = attendance(**changes)
    Attendant(run.workers, each, clock=lambda: each.updated)
    return each
