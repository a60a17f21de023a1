"""One pass over all that the workers wrote down: the seconds of every picture, and an even choice of those to show."""

from __future__ import annotations

import heapq
from array import array
from dataclasses import dataclass, field
from typing import Dict, List, Tuple, Union

from jobs.records import Failure, Session, read_records
from jobs.rundir import RunDir, RunInfo
from ldm.inference.spec import ImageRecord

Record = Union[ImageRecord, Failure]

BLOCKS = 20  # a sample has pictures of at least so many places of the run
EXTRA_SHARE = 4  # of flagged and failed pictures, a quarter of the limit is shown beyond the sample
SLOWEST = 100


@dataclass
class Survey:
    """What is known of all pictures: `seconds` by worker, and in `shown` those for the page, in the plan's order."""

    found: int = 0
    shown: List[Record] = field(default_factory=list)
    seconds: Dict[str, array[float]] = field(default_factory=dict)
    indices: Dict[str, array[int]] = field(default_factory=dict)  # of the same pictures, in the same order
    devices: Dict[str, str] = field(default_factory=dict)
    slowest: List[Tuple[float, int, str]] = field(default_factory=list)  # seconds, index, worker; the slowest first
    sessions: List[Session] = field(default_factory=list)
    failures: List[Failure] = field(default_factory=list)
    failed: Dict[str, int] = field(default_factory=dict)  # how many, by worker
    flagged: List[ImageRecord] = field(default_factory=list)
    noted: List[ImageRecord] = field(default_factory=list)

    @property
    def all_seconds(self) -> List[float]:
        return [value for values in self.seconds.values() for value in values]


class EvenSample:
    """Takes about `limit` of `total` pictures as they go by, evenly over the run.

    A stretch of one prompt is taken or left as a whole, so that the sweeps of a sample have no holes; a long stretch
    counts as several.
    """

    def __init__(self, total: int, limit: int) -> None:
        self._share = min(1.0, limit / max(1, total))
        self._limit = limit
        self._stretch = max(1, limit // BLOCKS)
        self._prompt = ""
        self._length = self._stretch
        self._seen = self._taken = 0
        self._taking = False

    def takes(self, prompt: str) -> bool:
        if prompt != self._prompt or self._length >= self._stretch:
            self._taking = self._taken <= self._seen * self._share
            self._prompt, self._length = prompt, 0
        self._length += 1
        self._seen += 1
        taken = self._taking and self._taken < self._limit
        self._taken += taken
        return taken


def take_survey(run: RunDir, info: RunInfo, total: int, limit: int) -> Survey:
    """Read the records of every shard. `total` pictures are known to be there, about `limit` are to be shown.

    Of the flagged and the failed ones some are shown beside the sample.
    """
    survey, sample, extra = Survey(), EvenSample(total, limit), limit // EXTRA_SHARE
    for shard in range(info.plan.shards):
        records = read_records(run.records_path(shard))
        survey.sessions += records.sessions
        found: Dict[int, Record] = {**records.failures, **records.images}
        for _, record in sorted(found.items()):
            _note(survey, record)
            taken = sample.takes(record.prompt) if isinstance(record, ImageRecord) else False
            special = isinstance(record, Failure) or record.flagged
            if taken or (special and extra > 0):
                survey.shown.append(record)
                extra -= not taken
    survey.slowest.sort(reverse=True)
    return survey


def _note(survey: Survey, record: Record) -> None:
    survey.found += 1
    if isinstance(record, Failure):
        survey.failures.append(record)
        survey.failed[record.worker] = survey.failed.get(record.worker, 0) + 1
        return
    survey.seconds.setdefault(record.worker, array("d")).append(record.seconds)
    survey.indices.setdefault(record.worker, array("q")).append(record.index)
    survey.devices[record.worker] = record.device
    slow = (record.seconds, record.index, record.worker)
    (heapq.heappush if len(survey.slowest) < SLOWEST else heapq.heappushpop)(survey.slowest, slow)
    if record.flagged:
        survey.flagged.append(record)
    if record.note:
        survey.noted.append(record)
