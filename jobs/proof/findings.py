"""What `verify` finds: what is proven, what is named without being a fault, and what is wrong, with what to type."""

from __future__ import annotations

import collections
import enum
from dataclasses import dataclass, field
from typing import Any, Counter, Dict, List

from jobs.plan import index_ranges

KEPT = 1000  # problems whose words are kept; the others are counted
RANGES_SHOWN = 100  # characters of a list of pictures on the terminal


class Fault(enum.Enum):
    """A kind of problem, named by what one does about it; {run} stands for the run folder."""

    PLAN = "plan the same prompts with the same settings anew, and copy plan.jsonl from there"
    RECORD = "remove the files in records/ that are named, then: python -m jobs resume {run}"
    MISSING = "python -m jobs resume {run}"
    DAMAGED = "remove the pictures and tars that are named, then: python -m jobs resume {run}"
    PACKING = "python -m jobs pack {run}"
    STRAY = "remove what the plan does not name, once no worker is left"


@dataclass
class Findings:
    """Of a shard or of a run; pictures by index. Only the first problems keep their words."""

    proven: int = 0
    flagged: List[int] = field(default_factory=list)
    dropped: List[int] = field(default_factory=list)
    failed: List[int] = field(default_factory=list)  # to be tried again by the next resume
    given_up: List[int] = field(default_factory=list)
    faults: Counter[Fault] = field(default_factory=collections.Counter)
    problems: List[str] = field(default_factory=list)

    def add(self, fault: Fault, problem: str) -> None:
        self.faults[fault] += 1
        if len(self.problems) < KEPT:
            self.problems.append(f"{fault.name.lower()}: {problem}")

    def merge(self, other: Findings) -> None:
        self.proven += other.proven
        for name in ("flagged", "dropped", "failed", "given_up"):
            getattr(self, name).extend(getattr(other, name))
        self.faults += other.faults
        self.problems += other.problems[: KEPT - len(self.problems)]

    @property
    def whole(self) -> bool:
        """Whether all is as planned, and every picture made, but for those that the safety policy dropped."""
        return not (self.faults or self.failed or self.given_up)

    def to_json(self) -> Dict[str, Any]:
        """Lists of pictures are written as ranges, such as 0-3,7."""
        return {
            "proven": self.proven,
            **{name: index_ranges(getattr(self, name)) for name in ("flagged", "dropped", "failed", "given_up")},
            "faults": {fault.name.lower(): count for fault, count in self.faults.items()},
            "problems": self.problems,
        }


def format_findings(findings: Findings, planned: int, run: str, shown: int) -> List[str]:
    """The lines for a terminal: one a problem, what to do about each kind, what is named, and the sum."""
    lines = findings.problems[:shown]
    total = sum(findings.faults.values())
    if total > shown:
        lines.append(f"and {total - shown} problems more; the first {KEPT} are in verify.json")
    lines += [f"{fault.name.lower()}: {fault.value.format(run=run)}" for fault in Fault if findings.faults[fault]]
    named = {
        "flagged by the safety check": findings.flagged,
        "dropped by the safety policy": findings.dropped,
        f"failed, to be tried again by python -m jobs resume {run}": findings.failed,
        f"given up after failing, until python -m jobs retry --failed {run}": findings.given_up,
    }
    lines += [f"{_shortened(index_ranges(indices))}: {why}" for why, indices in named.items() if indices]
    return [*lines, _sum(findings, planned, total)]


def _sum(findings: Findings, planned: int, total: int) -> str:
    failed = len(findings.failed) + len(findings.given_up)
    counts = f"{len(findings.flagged)} flagged, {len(findings.dropped)} dropped, {failed} failed"
    verdict = "proven" if findings.whole else "not proven"
    pictures = f"{findings.proven} of {planned} pictures are there, whole and as planned"
    return f"{verdict}: {pictures}; {counts}, {total} problem{'' if total == 1 else 's'}"


def _shortened(ranges: str) -> str:
    if len(ranges) <= RANGES_SHOWN:
        return f"pictures {ranges}"
    return f"pictures {ranges[:RANGES_SHOWN].rpartition(',')[0]} and more (in verify.json)"
