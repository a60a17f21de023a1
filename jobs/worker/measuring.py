"""How quick the card of a probe is at each number of pictures at once, and how many it has memory for.

It is tried once the pictures of the probe are made: the network alone, for 1, 2, 4, ... pictures, until there is no
memory, nothing is gained any more, or the time is over. What is found is one small file of the run, `measured.json`.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Callable, List, Optional, Sequence, Tuple

from jobs.reading import read_bytes
from jobs.rundir import RunDir
from ldm.inference.files import write_atomically

if TYPE_CHECKING:
    from ldm.inference.room import Memory, RunNetwork

MOST, MOST_UNSEEN = 64, 8  # pictures at once; where the memory is not known, so that it is not filled
REPEATS = 3
SECONDS = 60.0  # after which no further size is begun
WORTH = 0.03  # of the time: a batch twice as large that saves less is not tried further, nor advised


@dataclass(frozen=True)
class Tried:
    """So many pictures at once: seconds for one of them and one pass through the network."""

    pictures: int
    seconds: float


@dataclass(frozen=True)
class Findings:
    """What was found on a device for pictures of a size in px. `most`: how many fit at once, None where not known."""

    device: str
    height: int
    width: int
    tried: Tuple[Tried, ...]
    most: Optional[int] = None

    @property
    def advised(self) -> Optional[int]:
        """The smallest number that is about as quick as the quickest; a batch is what a lost process costs."""
        best = min((each.seconds for each in self.tried), default=0.0)
        return next((each.pictures for each in self.tried if each.seconds * (1 - WORTH) <= best), None)

    def up_to(self, pictures: int) -> Findings:
        """Without what was tried with more pictures than there are."""
        return dataclasses.replace(self, tried=tuple(each for each in self.tried if each.pictures <= pictures))

    def slower(self, pictures: int) -> Optional[float]:
        """How many times the seconds of the advised number this one takes; None where it was not tried."""
        seconds = {each.pictures: each.seconds for each in self.tried}
        advised = self.advised
        return None if advised is None or pictures not in seconds else seconds[pictures] / seconds[advised]


def try_sizes(
    run_network: RunNetwork,
    wait: Callable[[], None],
    memory: Optional[Memory] = None,
    clock: Callable[[], float] = time.perf_counter,
    begin: Callable[[], None] = lambda: None,
    calls_to_settle: int = 0,
) -> Tuple[List[Tried], Optional[int]]:
    """Each size that was tried, and how many pictures fit at once, None where `memory` is not known.

    `run_network` runs the network for so many pictures, `wait` until that is done. `begin` has it forget what it has
    recorded, as what is replayed takes no memory that could be seen; after so many calls of one size it is as quick as
    it will be.
    """
    from ldm.inference.room import SHARE, Line, measure

    tried: List[Tried] = []
    peaks: List[int] = []
    started = clock()
    pictures = 1
    most = MOST_UNSEEN if memory is None else MOST
    while pictures <= most and clock() - started < SECONDS and _still_gains(tried):
        begin()
        if memory is None:
            run_network(pictures)  # builds kernels and fills caches
        else:
            peak = measure(run_network, pictures, memory)
            if peak is None or peak > SHARE * memory.free():
                break
            peaks.append(peak)
        for _ in range(calls_to_settle):
            run_network(pictures)
        tried.append(Tried(pictures, _seconds(run_network, pictures, wait, clock) / pictures))
        pictures *= 2
    begin()
    if memory is None or not tried:
        return tried, None
    line = Line.through(peaks[0], peaks[1]) if len(peaks) > 1 else None
    return tried, (line and line.pictures(memory.free())) or tried[-1].pictures


def _still_gains(tried: Sequence[Tried]) -> bool:
    """Whether either of the last two doublings was worth it: a card may lose at one size and gain at the next."""
    return len(tried) < 3 or min(each.seconds for each in tried[-2:]) <= (1 - WORTH) * tried[-3].seconds


def _seconds(run_network: RunNetwork, pictures: int, wait: Callable[[], None], clock: Callable[[], float]) -> float:
    times = []
    for _ in range(REPEATS):
        wait()
        begun = clock()
        run_network(pictures)
        wait()
        times.append(clock() - begun)
    return statistics.median(times)


def is_wanted(run: RunDir) -> bool:
    """Whether somebody asked for findings of this run that are not there yet."""
    return run.measure_path.exists() and not run.measured_path.exists()


def write_findings(run: RunDir, findings: Findings) -> None:
    write_atomically(run.measured_path, json.dumps(dataclasses.asdict(findings)).encode("utf-8"))


def read_findings(run: RunDir) -> Optional[Findings]:
    """What the process of a probe has found; None where it has not."""
    data = read_bytes(run.measured_path)
    if data is None:
        return None
    values = json.loads(data)
    return Findings(**{**values, "tried": tuple(Tried(**each) for each in values["tried"])})
