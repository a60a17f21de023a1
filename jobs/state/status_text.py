"""The state of a run as lines for a terminal, as one line for a log, and as JSON."""

from __future__ import annotations

import dataclasses
import shlex
from typing import Any, Dict, List, Optional, Sequence, Tuple

from jobs.cluster.queue import SILENT_SECONDS
from jobs.plan import index_ranges
from jobs.state.report import format_problems, format_totals
from jobs.state.status import Lost, Present, Queued, Status
from jobs.wording import duration, speed

PRESENT_SHOWN = 16
COLUMNS = ("host", "job", "card", "shards", "made", "speed", "use", "sign of life", "job's time left")


def format_status(status: Status) -> List[str]:
    """The state as lines for a terminal."""
    return [
        *format_totals(status.report),
        *_now_lines(status),
        *_present_lines(status.present),
        *_lost_lines(status.lost),
        *[f"{node} keeps failing: {count} workers one after the other" for node, count in status.failing.items()],
        *format_problems(status.report),
    ]


def format_line(status: Status) -> str:
    """The state in one line."""
    report = status.report
    failed = f", {report.failed} failed" if report.failed else ""
    return f"{report.done}/{report.planned} pictures{failed}, {_now(status)}"


def to_json(status: Status) -> Dict[str, Any]:
    """The state as plain values; the numbers of the report stand beside the others."""
    values = dataclasses.asdict(status)
    report = values.pop("report")
    overall = {"images_per_second_overall": report.pop("images_per_second"), "finished": status.report.finished}
    return {"run": values.pop("run"), **report, **overall, **values}


def _now_lines(status: Status) -> List[str]:
    if status.report.finished and not status.present and (status.queued is None or status.queued.empty):
        return []
    paused = ["paused: workers end between batches; resume the run to go on"] if status.paused else []
    alone = status.report.missing and status.idle and not status.paused
    resume = [f"python -m jobs resume {shlex.quote(status.run)} makes what is missing"] if alone else []
    return [f"now: {_now(status)}", *paused, *resume]


def _now(status: Status) -> str:
    """Who works and waits, how fast, and how long it will take."""
    parts = [f"{len(status.present)} at work" if status.present else "nobody at work"]
    if status.images_per_second:
        parts.append(speed(status.images_per_second))
    if status.seconds_left is not None and status.report.missing:
        parts.append(f"{duration(status.seconds_left)} left")
    return ", ".join([*parts, *_queue_parts(status.queued)])


def _queue_parts(queued: Optional[Queued]) -> List[str]:
    if queued is None:
        return ["squeue gives no answer"]
    pending = sum(queued.pending.values())
    reasons = ", ".join(f"{count} {reason}" if len(queued.pending) > 1 else reason
                        for reason, count in queued.pending.items())  # fmt: skip
    jobs = [(queued.running, "running", ""), (pending, "pending", f" ({reasons})"), (queued.held, "held", "")]
    return [f"{count} {'job' if count == 1 else 'jobs'} {what}{why}" for count, what, why in jobs if count]


def _present_lines(present: Sequence[Present]) -> List[str]:
    """A table of those at work, the quietest first where there are too many."""
    if not present:
        return []
    shown = sorted(present, key=lambda each: -each.silent_for)[:PRESENT_SHOWN]
    rows = [COLUMNS, *(_row(each) for each in sorted(shown, key=lambda each: (each.host, each.job, each.rank)))]
    used = [index for index in range(len(COLUMNS)) if any(row[index] for row in rows[1:])]
    widths = [max(len(row[index]) for row in rows) for index in range(len(COLUMNS))]
    lines = ["  " + "  ".join(row[index].ljust(widths[index]) for index in used).rstrip() for row in rows]
    more = len(present) - len(shown)
    return [*lines, f"  and {more} more, heard of since"] if more else lines


def _row(each: Present) -> Tuple[str, ...]:
    return (
        each.host,
        each.job,
        each.card,
        _shards(each.shards),
        "loading" if each.loading else str(each.made),
        speed(each.images_per_second) if each.images_per_second else "",
        "" if each.usage is None else f"{each.usage:.0f} %",
        f"{duration(each.silent_for)} ago{' (silent)' if each.silent_for > SILENT_SECONDS else ''}",
        "" if each.seconds_left is None else duration(each.seconds_left),
    )


def _shards(shards: Sequence[int], limit: int = 20) -> str:
    """Shards as ranges, cut where there are too many to read."""
    text = index_ranges(sorted(shards))
    return text if len(text) <= limit else f"{text[:limit].rpartition(',')[0]},... ({len(shards)})"


def _lost_lines(lost: Sequence[Lost]) -> List[str]:
    """One line a node with workers that died and left something undone; how many died in all."""
    open_work: Dict[str, List[Lost]] = {}
    for each in lost:
        if each.shards:
            open_work.setdefault(each.host, []).append(each)
    return [_lost_line(host, workers) for host, workers in open_work.items()]


def _lost_line(host: str, workers: Sequence[Lost]) -> str:
    last = min(workers, key=lambda each: each.silent_for)
    shards = sorted({shard for each in workers for shard in each.shards})
    count = f"{len(workers)} workers" if len(workers) > 1 else "a worker"
    job = f" (job {last.job}{', ' + last.state if last.state else ''})" if last.job else ""
    verb = "lost" if last.certain else "not heard of"
    return (
        f"{verb} on {host}: {count}{job}, last sign of life {duration(last.silent_for)} ago, shards {_shards(shards)}"
    )
