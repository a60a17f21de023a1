"""Nodes to keep away from: those on which one worker after the other fails while other nodes make pictures."""

from __future__ import annotations

from typing import Collection, Dict, List, Sequence

from jobs.attendance import UPDATE_SECONDS, Attendance, End

FAILURES = 3
FORGIVEN_SECONDS = 24 * 3600.0  # after which a node's failures are forgotten
CRASH_SECONDS = 2 * UPDATE_SECONDS  # workers whose last signs are this close were lost together


def failing_nodes(attendances: Sequence[Attendance], lost: Collection[Attendance] = ()) -> Dict[str, int]:
    """The nodes on which workers ended in an error, made none of their pictures, or were among the `lost`, at least 3
    times with no success there since; each with that number. Workers that were lost together count once: that was one
    crash.

    A node is blamed only if another one made pictures after its failures began: what fails everywhere, such as a full
    disk or a missing file of weights, is the fault of no node.
    """
    dead = set(lost)
    streaks: Dict[str, List[Attendance]] = {}
    successes: Dict[str, float] = {}
    for each in sorted((one for one in attendances if one.job), key=_last_sign):
        if each.end is End.ERROR or each in dead or (each.failed and not each.made):
            _add(streaks.setdefault(each.host, []), each)
        elif each.made or each.end is End.DONE:
            streaks.pop(each.host, None)
            successes[each.host] = _last_sign(each)
    return {
        host: len(failed)
        for host, failed in streaks.items()
        if len(failed) >= FAILURES and _others_work(host, failed[0].started, successes)
    }


def of_late(attendances: Sequence[Attendance], now: float) -> List[Attendance]:
    """Those whose last sign is recent enough to be held against their node."""
    return [each for each in attendances if now - _last_sign(each) < FORGIVEN_SECONDS]


def _add(streak: List[Attendance], failed: Attendance) -> None:
    """Put a failure behind those before it, in the place of one that was lost in the same crash."""
    together = streak and streak[-1].end is None and _last_sign(failed) - _last_sign(streak[-1]) < CRASH_SECONDS
    if failed.end is None and together:
        streak[-1] = failed
    else:
        streak.append(failed)


def _last_sign(each: Attendance) -> float:
    return each.updated if each.ended is None else each.ended


def _others_work(host: str, since: float, successes: Dict[str, float]) -> bool:
    return any(when >= since for node, when in successes.items() if node != host)
