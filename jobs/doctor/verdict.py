"""What a check of the doctor's found."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Verdict(enum.Enum):
    """How a check ended; only FAIL keeps a run from working."""

    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's."""

    verdict: Verdict
    text: str

    def __str__(self) -> str:
        return f"{self.verdict.value:4}  {self.text}"


def ok(text: str) -> Finding:
    """It is as it must be."""
    return Finding(Verdict.OK, text)


def warning(text: str) -> Finding:
    """It may be wrong, which cannot be told here."""
    return Finding(Verdict.WARN, text)


def failure(text: str) -> Finding:
    """A run would not work."""
    return Finding(Verdict.FAIL, text)
