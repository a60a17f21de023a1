"""Running a command as a child and saying what it took; a measured value and its spread."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Optional, Sequence

ROOT = Path(__file__).resolve().parents[2]
WIDE = 0.1  # a spread above this is said


@dataclass(frozen=True)
class Cost:
    """What one child took: seconds of the clock and of the processor, and the most memory it had, in MiB."""

    seconds: float
    cpu: float
    peak_mib: float
    said: str


@dataclass(frozen=True)
class Measured:
    """Repeats of one measurement."""

    values: Sequence[float]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def spread(self) -> float:
        """The distance between the highest and the lowest, as a share of the median."""
        return (max(self.values) - min(self.values)) / abs(self.median) if self.median else 0.0

    def text(self, unit: str, digits: int = 2) -> str:
        """The median, and the range where there are repeats; a wide one is pointed at."""
        if len(self.values) == 1:
            return f"{self.median:.{digits}f} {unit}"
        lowest, highest = min(self.values), max(self.values)
        wide = f", spread {self.spread:.0%}" if self.spread > WIDE else ""
        return f"{self.median:.{digits}f} {unit} ({lowest:.{digits}f} to {highest:.{digits}f}{wide})"


@dataclass(frozen=True)
class Row:
    """One line of the table: what was measured, the bar, what came out, and whether it met the bar."""

    what: str
    bar: str
    found: str
    met: Optional[bool] = None


def jobs(*words: str) -> Sequence[str]:
    """The command line of `python -m jobs ...`."""
    return (sys.executable, "-m", "jobs", *words)


def run(command: Sequence[str], env: Optional[Dict[str, str]] = None) -> Cost:
    """Run a child in the project's folder to its end; RuntimeError with its words if it fails."""
    started = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, restore_signals=False
    )
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = status
    if status:
        raise RuntimeError(f"{' '.join(command)} failed\n{said}")
    return Cost(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, said)
