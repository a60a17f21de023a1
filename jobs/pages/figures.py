"""The figures of a run by worker and by node: how long their pictures took, when they were at work, how they ended."""

from __future__ import annotations

import dataclasses
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Callable, Dict, Iterable, List, Optional, Sequence, Tuple

from jobs.attendance import UPDATE_SECONDS, Attendance, End
from jobs.records import Session
from jobs.state.survey import Survey

STRAGGLER = 1.25  # times the run's median: from here on a worker is called slow
LEAST_PICTURES = 4  # below which a median says nothing about a worker
SILENT_SECONDS = 3 * UPDATE_SECONDS
AT_WORK, NO_LAST_WORD = "at work", "no last word"

Interval = Tuple[float, float]


@dataclass(frozen=True)
class Spread:
    """How `count` durations in seconds lie."""

    count: int
    mean: float
    p5: float
    p25: float
    p50: float
    p75: float
    p95: float
    longest: float


@dataclass(frozen=True)
class Figures:
    """One worker, or all of one node. `busy` holds when it was at work, in seconds since 1970; `loading` seconds went
    by before the first picture. `pace` is how long it takes for equal work over the run's median, above 1 if slower.
    """

    name: str
    node: str
    device: str
    workers: int
    made: int
    failed: int
    seconds: Optional[Spread]
    pace: Optional[float]
    hours: float
    loading: Optional[float]
    busy: Tuple[Interval, ...]
    errors: int
    ended: str
    message: str

    @property
    def is_straggler(self) -> bool:
        enough = self.seconds is not None and self.seconds.count >= LEAST_PICTURES
        return enough and self.pace is not None and self.pace >= STRAGGLER


def spread(values: Iterable[float]) -> Optional[Spread]:
    """How the values lie; None if there are none."""
    ordered = sorted(values)
    if not ordered:
        return None
    p5, p25, p50, p75, p95 = (quantile(ordered, share) for share in (0.05, 0.25, 0.5, 0.75, 0.95))
    return Spread(len(ordered), sum(ordered) / len(ordered), p5, p25, p50, p75, p95, ordered[-1])


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value below which `share` of the ascending values lie, between two of them by proportion."""
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def worker_figures(
    survey: Survey, attendances: Sequence[Attendance], efforts: Sequence[float], clock: Callable[[], float] = time.time
) -> List[Figures]:
    """Each process that was ever at work, the slowest first. `efforts` is the work of each planned picture, in any unit
    and by its number, so that who was given the larger pictures does not pass for slow.
    """
    rates = _rates(survey, efforts)
    median = _median(value for values in rates.values() for value in values)
    sessions: Dict[str, List[Session]] = {}
    for session in survey.sessions:
        sessions.setdefault(session.worker, []).append(session)
    present = {attendance.worker: attendance for attendance in attendances}
    names = dict.fromkeys([*survey.seconds, *sessions, *present, *survey.failed])
    found = [_worker(name, survey, sessions.get(name, []), present.get(name), clock()) for name in names]
    return sorted((_paced(each, rates[each.name], median) for each in found), key=_slowest_first)


def node_figures(survey: Survey, workers: Sequence[Figures], efforts: Sequence[float]) -> List[Figures]:
    """The workers of each node taken together, the slowest node first."""
    rates = _rates(survey, efforts)
    median = _median(value for values in rates.values() for value in values)
    nodes: Dict[str, List[Figures]] = {}
    for worker in workers:
        nodes.setdefault(worker.node, []).append(worker)
    found = []
    for name, group in nodes.items():
        own = [value for worker in group for value in rates[worker.name]]
        found.append(_paced(_node(name, group, survey), own, median))
    return sorted(found, key=_slowest_first)


def merged(intervals: Iterable[Interval], gap: float = 0.0) -> Tuple[Interval, ...]:
    """The intervals in order, as one where no more than `gap` lies between."""
    found: List[Interval] = []
    for start, end in sorted(intervals):
        if found and start <= found[-1][1] + gap:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return tuple(found)


def _worker(
    name: str, survey: Survey, sessions: Sequence[Session], attendance: Optional[Attendance], now: float
) -> Figures:
    busy = [(session.started, session.updated) for session in sessions]
    if attendance is not None:
        busy = [(attendance.started, max(attendance.updated, attendance.ended or 0.0))]
    devices = [attendance.device if attendance else "", survey.devices.get(name, ""), *(s.device for s in sessions)]
    return Figures(
        name=name,
        node=attendance.host if attendance else name.split("/")[0],
        device=next(filter(None, devices), ""),
        workers=1,
        made=len(survey.seconds.get(name, ())),
        failed=max(survey.failed.get(name, 0), attendance.failed if attendance else 0),
        seconds=spread(survey.seconds.get(name, ())),
        pace=None,
        hours=sum(end - start for start, end in busy) / 3600,
        loading=attendance.loading if attendance else None,
        busy=merged(busy, gap=1.0),
        errors=int(attendance is not None and attendance.end is End.ERROR),
        ended=_ended(attendance, now),
        message=attendance.message if attendance else "",
    )


def _ended(attendance: Optional[Attendance], now: float) -> str:
    if attendance is None:
        return ""
    if attendance.end is not None:
        return attendance.end.value
    return AT_WORK if now - attendance.updated < SILENT_SECONDS else NO_LAST_WORD


def _node(name: str, workers: Sequence[Figures], survey: Survey) -> Figures:
    loading = [worker.loading for worker in workers if worker.loading is not None]
    ends = [worker.ended for worker in workers if worker.ended]
    return Figures(
        name=name,
        node=name,
        device=next((worker.device for worker in workers if worker.device), ""),
        workers=len(workers),
        made=sum(worker.made for worker in workers),
        failed=sum(worker.failed for worker in workers),
        seconds=spread(value for worker in workers for value in survey.seconds.get(worker.name, ())),
        pace=None,
        hours=sum(worker.hours for worker in workers),
        loading=quantile(sorted(loading), 0.5) if loading else None,
        busy=merged((interval for worker in workers for interval in worker.busy), gap=1.0),
        errors=sum(worker.errors for worker in workers),
        ended=", ".join(f"{ends.count(end)} {end}" for end in dict.fromkeys(ends)),
        message=next((worker.message for worker in workers if worker.errors), ""),
    )


def _rates(survey: Survey, efforts: Sequence[float]) -> Dict[str, List[float]]:
    """Seconds for one unit of work, of each picture of each worker."""
    rates: Dict[str, List[float]] = defaultdict(list)
    for worker, seconds in survey.seconds.items():
        timed = zip(seconds, survey.indices[worker])
        rates[worker] = [each / efforts[index] for each, index in timed if index < len(efforts) and efforts[index]]
    return rates


def _median(values: Iterable[float]) -> Optional[float]:
    ordered = sorted(values)
    return quantile(ordered, 0.5) if ordered else None


def _paced(figures: Figures, rates: Sequence[float], median: Optional[float]) -> Figures:
    own = _median(rates)
    return dataclasses.replace(figures, pace=own / median if own is not None and median else None)


def _slowest_first(figures: Figures) -> Tuple[float, str]:
    return (-(figures.pace or 0.0), figures.name)
