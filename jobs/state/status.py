"""How a run stands now: its report, who is at work on it and where, what waits in the queue, and who was lost.

The run's files alone carry it; what squeue and sacct add is a bonus, asked for once and briefly.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence, Set, Tuple

from jobs.attendance import Attendance, read_attendances
from jobs.cluster.nodes import failing_nodes, of_late
from jobs.cluster.presence import Presence, presences
from jobs.cluster.processes import works_here
from jobs.cluster.queue import Ask, JobState, ask, ended_jobs, job_id, known_jobs, live_jobs
from jobs.records import Session
from jobs.rundir import RunDir, RunInfo
from jobs.state.logs import TaskLog, describe_unfinished, unfinished
from jobs.state.report import Report, Summaries, read_summaries, report_of, undone_shards

FRESH_SECONDS = 60.0  # how long a worker may write nothing before that slows it down here


@dataclass(frozen=True)
class Present:
    """A process that is at work. `shards`: those of its share that are not done; `loading`: no picture begun yet.

    `usage` is how busy its card was when last asked, in per cent; `silent_for` and `seconds_left` (of its job) seconds.
    """

    host: str
    job: str
    rank: int
    card: str
    device: str
    shards: Tuple[int, ...]
    loading: bool
    made: int
    images_per_second: Optional[float]
    usage: Optional[float]
    silent_for: float
    seconds_left: Optional[int]


@dataclass(frozen=True)
class Lost:
    """A process that died without a word; one that is only not heard of any more is not `certain`.

    `state`: how its job ended, where sacct says so.
    """

    host: str
    job: str
    rank: int
    shards: Tuple[int, ...]
    silent_for: float
    certain: bool
    state: str


@dataclass(frozen=True)
class Queued:
    """The run's jobs in the queue: how many run and are held, and how many wait for each reason."""

    running: int
    pending: Dict[str, int]
    held: int

    @property
    def empty(self) -> bool:
        return not (self.running or self.pending or self.held)


@dataclass(frozen=True)
class Status:
    """A run now. `queued`: None where the queue could not be asked. `seconds_left` until the last picture, None where
    that cannot be told; `failing` are nodes with the number of workers that failed there one after the other.
    """

    run: str
    report: Report
    images_per_second: Optional[float]
    seconds_left: Optional[float]
    paused: bool
    present: Tuple[Present, ...]
    queued: Optional[Queued]
    lost: Tuple[Lost, ...]
    failing: Dict[str, int]

    @property
    def idle(self) -> bool:
        """Whether nobody is at work and nothing waits in the queue, as far as one can know."""
        return not self.present and self.queued is not None and self.queued.empty


def make_status(run: RunDir, info: RunInfo, ask: Ask = ask) -> Status:
    """Ask the queue, if the run has to do with one, and then read the run's files."""
    asked = time.time()
    live = live_jobs(run, ask) if uses_slurm(run, info) else {}
    attendances = read_attendances(run.workers)
    summaries = read_summaries(run, info)
    report = report_of(run, info, summaries, attendances)
    places = presences(run, attendances, live, asked)
    lost = [each for each, place in places if place is Presence.LOST]
    view = _View(asked, live or {}, _sessions(summaries), set(undone_shards(summaries)))
    present = tuple(view.present(each) for each, place in places if place is Presence.AT_WORK)
    speeds = [each.images_per_second for each in present if each.images_per_second]
    return Status(
        run=str(run.path),
        report=report,
        images_per_second=sum(speeds) or None,
        seconds_left=_seconds_left(report.missing, speeds, len(present)),
        paused=run.pause_path.exists(),
        present=present,
        queued=None if live is None else queued(live),
        lost=view.lost(places, ended_jobs([job_id(each) for each in lost if each.job], ask)),
        failing=failing_nodes(of_late(attendances, asked), lost),
    )


def _seconds_left(missing: int, speeds: Sequence[float], present: int) -> Optional[float]:
    """How long those at work will need, if those who have made no picture yet become as fast as the others."""
    return missing / (sum(speeds) / len(speeds) * present) if speeds else None


def why_unfinished(run: RunDir, info: RunInfo, logs: Sequence[TaskLog], attendances: Sequence[Attendance]) -> List[str]:
    """Lines that say why tasks of these logs have ended and left work undone, newest first, equal reasons together."""
    undone = set(undone_shards(read_summaries(run, info)))
    if not undone:
        logs = [log for log in logs if log.path.parent != run.logs]  # all is made: how often a file failed is no matter
    live = (live_jobs(run) if uses_slurm(run, info) else {}) or {}
    coming = {job for job, state in live.items() if state.will_work}
    here = {shard for each in attendances if works_here(run, each) for shard in each.shards}
    groups = unfinished(logs, undone - here, coming)
    states = ended_jobs(group.logs[0].job for group in groups)
    return [line for group in groups for line in describe_unfinished(group, states)]


def uses_slurm(run: RunDir, info: RunInfo) -> bool:
    """Whether the run's jobs may be in a queue."""
    return info.settings.profile.scheduler == "slurm" or bool(known_jobs(run))


def queued(live: Dict[str, JobState]) -> Queued:
    """The numbers of jobs in the queue by what they do or wait for."""
    waiting = [state for state in live.values() if state.waiting and not state.held]
    reasons = sorted(state.reason or "no reason given" for state in waiting)
    return Queued(
        running=sum(state.running for state in live.values()),
        pending={reason: reasons.count(reason) for reason in dict.fromkeys(reasons)},
        held=sum(state.held for state in live.values()),
    )


@dataclass(frozen=True)
class _View:
    """What a process is looked at with: the time, the queue, what workers wrote down, the shards that are not done."""

    now: float
    live: Dict[str, JobState]
    sessions: Dict[str, List[Session]]
    undone: Set[int]

    def present(self, each: Attendance) -> Present:
        state = self.live.get(job_id(each))
        return Present(
            host=each.host,
            job=job_id(each),
            rank=each.rank,
            card=each.card,
            device=each.device,
            shards=self._left(each),
            loading=each.loading is None,
            made=sum(session.made for session in self.sessions.get(each.worker, ())),
            images_per_second=self._speed(each.worker),
            usage=each.usage,
            silent_for=self._silent_for(each),
            seconds_left=state.seconds_left if state else None,
        )

    def lost(self, places: Sequence[Tuple[Attendance, Presence]], states: Dict[str, str]) -> Tuple[Lost, ...]:
        return tuple(
            Lost(
                host=each.host,
                job=job_id(each),
                rank=each.rank,
                shards=self._left(each),
                silent_for=self._silent_for(each),
                certain=place is Presence.LOST,
                state=states.get(job_id(each), ""),
            )
            for each, place in places
            if place in (Presence.LOST, Presence.SILENT)
        )

    def _left(self, each: Attendance) -> Tuple[int, ...]:
        return tuple(shard for shard in each.shards if shard in self.undone)

    def _silent_for(self, each: Attendance) -> float:
        written = [session.updated for session in self.sessions.get(each.worker, ())]
        return max(0.0, self.now - max([each.updated, *written]))

    def _speed(self, worker: str) -> Optional[float]:
        """Pictures a second of a worker, from the beginning of its first shard on."""
        own = self.sessions.get(worker, [])
        made = sum(session.made for session in own)
        if not made:
            return None
        last = max(session.updated for session in own)
        until = last if self.now - last < FRESH_SECONDS else self.now
        seconds = until - min(session.started for session in own)
        return made / seconds if seconds > 0 else None


def _sessions(summaries: Summaries) -> Dict[str, List[Session]]:
    """What each worker has written down."""
    found: Dict[str, List[Session]] = {}
    for summary in summaries:
        for session in summary.sessions if summary else ():
            found.setdefault(session.worker, []).append(session)
    return found
