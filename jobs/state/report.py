"""What has become of a run, from its own files alone: no scheduler is asked, so it works on any site and afterwards."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Dict, Iterable, List, Optional, Sequence, Tuple

from jobs.attendance import Attendance, read_attendances
from jobs.plan import index_ranges
from jobs.reading import reading
from jobs.records import EARLIER, Failure, Session, ShardSummary, read_summary
from jobs.rundir import RunDir, RunInfo
from jobs.state.logs import TaskLog, latest_logs, reasons, tail, task_logs
from jobs.wording import money, speed

SHOWN = 5  # failures, logs with bad news, and lines of one, that are shown
LOG_TAIL_BYTES = 4096

Summaries = Sequence[Optional[ShardSummary]]


@dataclass(frozen=True)
class Trouble:
    """Shards that did not get done, and the last words of their log."""

    shards: Tuple[int, ...]
    log: str
    lines: Tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """A run in numbers of pictures. `missing` have neither a file nor a failure yet; `quarantined` are those of the
    failed that are tried no more. `startup_share` is how much of the card-hours went by before the first picture could
    begin, 0 to 1; None where no process has noted it.
    """

    planned: int
    done: int
    flagged: int
    failed: int
    missing: int
    images_per_second: Optional[float]
    card_hours: float
    cost: Optional[float]
    failures: Tuple[str, ...]
    troubles: Tuple[Trouble, ...]
    quarantined: int = 0
    startup_share: Optional[float] = None
    currency: str = ""

    @property
    def finished(self) -> bool:
        """Whether every picture is done or will not be tried again by itself."""
        return not self.missing and self.failed == self.quarantined


def make_report(run: RunDir, info: RunInfo) -> Report:
    """Read the last line of each shard's records; the records and logs themselves only where something failed."""
    return report_of(run, info, read_summaries(run, info), read_attendances(run.workers))


def read_summaries(run: RunDir, info: RunInfo) -> List[Optional[ShardSummary]]:
    """The last line of each shard's records; None for a shard that nobody has begun."""
    return [read_summary(run.records_path(shard)) for shard in range(info.plan.shards)]


def report_of(run: RunDir, info: RunInfo, summaries: Summaries, attendances: Sequence[Attendance]) -> Report:
    """The report that these readings of the run give."""
    found = [summary for summary in summaries if summary is not None]
    sessions = [session for summary in found for session in summary.sessions]
    done, failed = sum(each.made for each in found), sum(each.failed for each in found)
    failures = _failures(run, found)
    present = _present(attendances, sessions)
    card_hours = (sum(present.values()) + _unattended(attendances, sessions)) / 3600
    profile = info.settings.profile
    return Report(
        planned=info.plan.images,
        done=done,
        flagged=sum(each.flagged for each in found),
        failed=failed,
        missing=info.plan.images - done - failed,
        images_per_second=rate(sessions),
        card_hours=card_hours,
        cost=None if profile.price_per_card_hour is None else profile.price_per_card_hour * card_hours,
        failures=tuple(f"picture {failure.index}: {failure.error}" for failure in failures[:SHOWN]),
        troubles=_troubles(task_logs(run, attendances), undone_shards(summaries)),
        quarantined=sum(failure.quarantined for failure in failures),
        startup_share=_startup_share(present),
        currency=profile.currency,
    )


def undone_shards(summaries: Summaries) -> List[int]:
    """The shards that have something left to be made."""
    return [shard for shard, summary in enumerate(summaries) if summary is None or not summary.done]


def format_report(report: Report) -> List[str]:
    """The report as lines for a terminal."""
    return [*format_totals(report), *format_problems(report)]


def format_totals(report: Report) -> List[str]:
    """The report's numbers, as two lines."""
    share = 100 * report.done / report.planned
    together = "" if report.images_per_second is None else " by all"
    spent = [f"{speed(report.images_per_second)}{together}", f"{report.card_hours:.2f} card-hours"]
    if report.cost is not None:
        spent.append(f"cost {money(report.cost, report.currency)}")
    if report.startup_share is not None and report.done:
        spent.append(f"start-up {100 * report.startup_share:.1f} % of them")
    quarantined = f" ({report.quarantined} given up, until retry --failed)" if report.quarantined else ""
    return [
        f"{report.done} of {report.planned} pictures done ({share:.0f} %), "
        f"{report.flagged} flagged, {report.failed} failed{quarantined}, {report.missing} missing",
        ", ".join(spent),
    ]


def format_problems(report: Report) -> List[str]:
    """Some pictures that failed, and the last words of logs that end badly."""
    lines = [f"failed: {failure}" for failure in report.failures]
    for trouble in report.troubles:
        several = len(trouble.shards) > 1
        which = f"shards {index_ranges(trouble.shards)} are" if several else f"shard {trouble.shards[0]} is"
        lines.append(f"{which} not done; {trouble.log} ends with")
        lines += [f"    {line}" for line in trouble.lines]
    return lines


def rate(sessions: Sequence[Session]) -> Optional[float]:
    """Pictures a second of the time in which at least one worker was at work; None before the first."""
    made = sum(session.made for session in sessions)
    busy, end = 0.0, 0.0
    for session in sorted(sessions, key=lambda each: each.started):
        busy += max(0.0, session.updated - max(session.started, end))
        end = max(end, session.updated)
    return made / busy if made and busy > 0 else None


def _present(attendances: Sequence[Attendance], sessions: Iterable[Session]) -> Dict[Attendance, float]:
    """Seconds from each process's beginning to its end, or to the last sign of life that it gave anywhere."""
    written: Dict[str, float] = {}
    for session in sessions:
        written[session.worker] = max(session.updated, written.get(session.worker, 0.0))
    ends = {each: each.ended or max(each.updated, written.get(each.worker, 0.0)) for each in attendances}
    return {each: max(0.0, end - each.started) for each, end in ends.items()}


def _unattended(attendances: Sequence[Attendance], sessions: Iterable[Session]) -> float:
    """Seconds that workers without a file of their own have noted in the records. Those summed up had files, if any
    worker has.
    """
    noted = {each.worker for each in attendances} | ({EARLIER} if attendances else set())
    return sum(each.updated - each.started for each in sessions if each.worker not in noted)


def _startup_share(present: Dict[Attendance, float]) -> Optional[float]:
    """How much of the time went by before the first picture could begin; all of it where none could."""
    total = sum(present.values())
    before = sum(seconds if each.loading is None else each.loading for each, seconds in present.items())
    return min(1.0, before / total) if total > 0 else None


def _failures(run: RunDir, summaries: Iterable[ShardSummary]) -> List[Failure]:
    """The pictures that failed; of a shard's records only their lines are parsed."""
    return [failure for each in summaries if each.failed for failure in _read_failures(run, each.shard)]


def _read_failures(run: RunDir, shard: int) -> List[Failure]:
    path = run.records_path(shard)
    found: Dict[int, Failure] = {}
    with reading(path):
        lines = path.read_bytes().split(b"\n")
    for line in lines:
        if b'"error":' in line:
            try:
                failure = Failure(**json.loads(line))
            except (ValueError, TypeError):
                continue
            found[failure.index] = failure
    return list(found.values())


def _troubles(logs: Sequence[TaskLog], undone: Iterable[int]) -> Tuple[Trouble, ...]:
    """The undone shards whose latest log ends with bad news; one that is still being made has none."""
    latest = latest_logs(logs)
    shards_of: Dict[str, List[int]] = {}
    for shard in undone:
        if shard in latest:
            shards_of.setdefault(str(latest[shard].path), []).append(shard)
    paths = {str(log.path): log.path for log in latest.values()}
    found: List[Trouble] = []
    for name, shards in shards_of.items():
        lines = tuple(tail(paths[name], LOG_TAIL_BYTES)[-SHOWN:])
        if reasons(lines):
            found.append(Trouble(tuple(shards), name, lines))
        if len(found) == SHOWN:
            break
    return tuple(found)
