"""Which of the processes that ever were at work on a run are still there, from their own files and the queue.

The queue must have been asked before the files are read: a process writes its end before its job leaves the queue, so
one without an end whose job was gone by then has died.
"""

from __future__ import annotations

import enum
import socket
from typing import Dict, List, Optional, Sequence, Set, Tuple

from jobs.attendance import Attendance
from jobs.cluster.processes import works_here
from jobs.cluster.queue import SILENT_SECONDS, JobState, expand_nodes, job_id
from jobs.rundir import RunDir


class Presence(enum.Enum):
    """Where a process is. SILENT: nobody knows, and it has given no sign of life for minutes."""

    AT_WORK = "at work"
    SILENT = "silent"
    LOST = "lost"  # killed, perhaps with its node
    LEFT = "left"


def presences(
    run: RunDir, attendances: Sequence[Attendance], live: Optional[Dict[str, JobState]], asked: float
) -> List[Tuple[Attendance, Presence]]:
    """Each process, oldest first, and where it is. `live`: the run's jobs in the queue at the time `asked`, None where
    it could not be asked.
    """
    newest: Set[Tuple[str, int]] = set()
    found: List[Tuple[Attendance, Presence]] = []
    for each in sorted(attendances, key=lambda one: one.started, reverse=True):
        place = (job_id(each), each.rank)
        found.append((each, _presence(run, each, live, asked, replaced=place in newest)))
        if each.job:
            newest.add(place)
    return found[::-1]


def lost_workers(
    run: RunDir, attendances: Sequence[Attendance], live: Optional[Dict[str, JobState]], asked: float
) -> List[Attendance]:
    """The processes that died without a word, oldest first."""
    return [each for each, presence in presences(run, attendances, live, asked) if presence is Presence.LOST]


def _presence(
    run: RunDir, each: Attendance, live: Optional[Dict[str, JobState]], asked: float, *, replaced: bool
) -> Presence:
    if each.end is not None:
        return Presence.LEFT
    if works_here(run, each):
        return Presence.AT_WORK
    known = _in_queue(each, live, replaced=replaced) if each.job else _here(each)
    if known is False and each.started < asked:
        return Presence.LOST
    return Presence.SILENT if not known and asked - each.updated > SILENT_SECONDS else Presence.AT_WORK


def _here(each: Attendance) -> Optional[bool]:
    """Whether a process outside Slurm lives, None for one of another machine; no process of this one is its."""
    return False if each.host == socket.gethostname() else None


def _in_queue(each: Attendance, live: Optional[Dict[str, JobState]], *, replaced: bool) -> Optional[bool]:
    """Whether a job's process can be alive: its job runs, on its node, and no later process has its place. None where
    the queue could not be asked.
    """
    if live is None:
        return None
    state = live.get(job_id(each))
    if state is None or not state.running or replaced:
        return False
    return not state.node or each.host in expand_nodes(state.node)
