"""What a child took, a measured value with its spread, a table of such, and the machine that it was measured on."""

from __future__ import annotations

import os
import platform
import re
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional, Sequence

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


def markdown(table: Sequence[Row]) -> List[str]:
    """The rows as a table."""
    met = {True: "yes", False: "**no**", None: ""}
    rows = [f"| {row.what} | {row.bar} | {row.found} | {met[row.met]} |" for row in table]
    return ["| what | bar | found | met |", "| --- | --- | --- | --- |", *rows]


def processor() -> str:
    """What this machine computes with, without any name."""
    cpu = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    model = cpu.group(1) if cpu else platform.machine()
    return f"{os.cpu_count()} x {model}, {memory:.0f} GiB, Python {platform.python_version()}"


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
    with process.stdout:
        said = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = status
    if status:
        raise RuntimeError(f"{' '.join(command)} failed\n{said}")
    return Cost(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, said)
