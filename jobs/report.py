"""What has become of a run, from its own files alone: no scheduler is asked, so it works on any site and afterwards."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional, Tuple

from jobs.plan import index_ranges
from jobs.records import Session, ShardSummary, read_records, read_summary
from jobs.rundir import RunDir, RunInfo

SHOWN = 5  # failures, and logs with bad news, that are shown
LOG_TAIL_BYTES = 4096
TROUBLE = re.compile(r"error|traceback|killed|cancelled|time limit|out of memory", re.IGNORECASE)


@dataclass(frozen=True)
class Trouble:
    """Shards that did not get done, and the last words of their log."""

    shards: Tuple[int, ...]
    log: str
    lines: Tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """A run in numbers of pictures. `missing` have neither a file nor a failure yet; times are in seconds."""

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


def make_report(run: RunDir, info: RunInfo) -> Report:
    """Read the last line of each shard's records; the records and logs themselves only where something failed."""
    read = [read_summary(run.records_path(shard)) for shard in range(info.plan.shards)]
    found = [summary for summary in read if summary is not None]
    sessions = [session for summary in found for session in summary.sessions]
    done, failed = sum(each.made for each in found), sum(each.failed for each in found)
    card_hours = sum(session.updated - session.started for session in sessions) / 3600
    price = info.settings.profile.price_per_card_hour
    undone = [shard for shard, summary in enumerate(read) if summary is None or not summary.done]
    return Report(
        planned=info.plan.images,
        done=done,
        flagged=sum(each.flagged for each in found),
        failed=failed,
        missing=info.plan.images - done - failed,
        images_per_second=_rate(sessions),
        card_hours=card_hours,
        cost=None if price is None else price * card_hours,
        failures=_failures(run, found),
        troubles=_troubles(run, undone),
    )


def format_report(report: Report) -> List[str]:
    """The report as lines for a terminal."""
    share = 100 * report.done / report.planned
    lines = [
        f"{report.done} of {report.planned} pictures done ({share:.0f} %), "
        f"{report.flagged} flagged, {report.failed} failed, {report.missing} missing",
        f"{_rate_text(report.images_per_second)}, {report.card_hours:.2f} card-hours{_cost_text(report.cost)}",
    ]
    lines += [f"failed: {failure}" for failure in report.failures]
    for trouble in report.troubles:
        which = (
            f"shards {index_ranges(trouble.shards)} are" if len(trouble.shards) > 1 else f"shard {trouble.shards[0]} is"
        )
        lines.append(f"{which} not done; {trouble.log} ends with")
        lines += [f"    {line}" for line in trouble.lines]
    return lines


def _rate(sessions: List[Session]) -> Optional[float]:
    """Pictures a second of the time in which at least one worker was at work; None before the first."""
    made = sum(session.made for session in sessions)
    busy, end = 0.0, 0.0
    for session in sorted(sessions, key=lambda each: each.started):
        busy += max(0.0, session.updated - max(session.started, end))
        end = max(end, session.updated)
    return made / busy if made and busy > 0 else None


def _rate_text(rate: Optional[float]) -> str:
    if rate is None:
        return "no picture yet"
    return f"{rate:.2f} images/s" if rate >= 0.1 else f"{1 / rate:.0f} s an image"


def _cost_text(cost: Optional[float]) -> str:
    return "" if cost is None else f", cost {cost:.2f}"


def _failures(run: RunDir, summaries: List[ShardSummary]) -> Tuple[str, ...]:
    texts: List[str] = []
    for summary in summaries:
        if summary.failed and len(texts) < SHOWN:
            failures = read_records(run.records_path(summary.shard)).failures.values()
            texts += [f"picture {failure.index}: {failure.error}" for failure in failures]
    return tuple(texts[:SHOWN])


def _troubles(run: RunDir, undone: List[int]) -> Tuple[Trouble, ...]:
    """The undone shards whose latest log ends with bad news; one that is still being made has none."""
    logs = _latest_logs(run)
    shards_of: Dict[Path, List[int]] = {}
    for shard in undone:
        if shard in logs:
            shards_of.setdefault(logs[shard], []).append(shard)
    found: List[Trouble] = []
    for path, shards in shards_of.items():
        lines = _last_lines(path)
        if any(TROUBLE.search(line) for line in lines):
            found.append(Trouble(tuple(shards), str(path), lines))
        if len(found) == SHOWN:
            break
    return tuple(found)


def _latest_logs(run: RunDir) -> Dict[int, Path]:
    """The log of the process that had each shard last: processes of a task take its shards by turns."""
    return {
        shard: run.logs / task["logs"][turn % len(task["logs"])]
        for submission in run.submissions()
        for task in submission["tasks"]
        for turn, shard in enumerate(task["shards"])
    }


def _last_lines(path: Path) -> Tuple[str, ...]:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LOG_TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ()
    return tuple(line for line in text.splitlines() if line.strip())[-SHOWN:]
