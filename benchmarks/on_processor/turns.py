"""Ways that are measured in turns, on a machine whose host may give its processors to others for a while.

The standard library alone, as `talk`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Tuple

TRIES = 5
DISTURBED = 0.03  # of the processors' time: an answer that cost the machine as much is asked for again
PROBE_SECONDS, REST_SECONDS = 1.0, 3.0
BUSY = f"import time\nend = time.monotonic() + {PROBE_SECONDS}\nwhile time.monotonic() < end: sum(range(1000))"

Ask = Callable[[], float]


def alternate(asks: Mapping[str, Ask], rounds: int, patience: Patience) -> Dict[str, List[float]]:
    """The answers of each way, all ways once a round, every second round from the last to the first; one to warm up.

    `stolen` beside them: the largest share of the processors' time, of a round, that the machine's host gave to others.
    """
    found: Dict[str, List[float]] = {way: [] for way in (*asks, "stolen")}
    for ask in asks.values():
        ask()
    for number in range(rounds):
        stolen = []
        for way in list(asks)[:: -1 if number % 2 else 1]:
            answer, share = patience.ask(asks[way])
            found[way].append(answer)
            stolen.append(share)
        found["stolen"].append(max(stolen))
    return found


class Patience:
    """Asks again where the machine's host disturbed, and waits until it does not; for so many `seconds` in all."""

    def __init__(self, seconds: float) -> None:
        self._left = seconds

    def ask(self, ask: Ask) -> Tuple[float, float]:
        """The least disturbed answer, and the share of the processors' time that the host took meanwhile."""
        tries = [_try(ask)]
        while tries[-1][0] > DISTURBED and len(tries) < TRIES and self._left > 0:
            started = time.monotonic()
            if is_quiet():
                tries.append(_try(ask))
            else:
                time.sleep(REST_SECONDS)
            self._left -= time.monotonic() - started
        share, answer = min(tries)
        return answer, share


class StolenShare:
    """`share`: what part of the processors' time the host of a virtual machine gave to others within the block."""

    def __enter__(self) -> StolenShare:
        self._stolen, self._started = stolen_seconds(), time.perf_counter()
        return self

    def __exit__(self, *_: Any) -> None:
        passed = (time.perf_counter() - self._started) * (os.cpu_count() or 1)
        self.share = (stolen_seconds() - self._stolen) / passed


def stolen_seconds() -> float:
    """Processor seconds since the start of the machine that its host gave to others; none on a machine of its own."""
    ticks = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()
    return int(ticks[8]) / os.sysconf("SC_CLK_TCK")


def is_quiet() -> bool:
    """Whether the host leaves all processors to this machine while all have work, which an idle machine cannot tell."""
    with StolenShare() as stolen:
        busy = [subprocess.Popen((sys.executable, "-S", "-c", BUSY)) for _ in range(os.cpu_count() or 1)]
        for each in busy:
            each.wait()
    return stolen.share <= DISTURBED


def _try(ask: Ask) -> Tuple[float, float]:
    with StolenShare() as stolen:
        answer = ask()
    return stolen.share, answer
