"""What workers write down: records/shard-00012.jsonl, one line a picture, and a last line that sums the shard up.

    {"index":7,"request_id":"...","file":"samples/000/000007.png","sha256":"...", ...}      an ImageRecord
    {"index":8,"request_id":"...","error":"...","worker":"..."}                             a Failure
    {"shard":0,"done":true,"made":99,"flagged":2,"failed":1,"sessions":[...]}               the ShardSummary

The file is always replaced as a whole, so readers see every line of it. A shard has one worker; if a lost one comes
back beside its successor, each keeps what it has seen of the other's. A line that cannot be read counts as not written.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, Mapping, Optional, Set, Tuple

from jobs.reading import read_bytes, read_end
from jobs.spec import PlannedImage, Shard
from ldm.inference.files import write_atomically
from ldm.inference.spec import ImageRecord

LAST_LINE_BYTES = 64 * 1024
FLUSH_SECONDS = 1.0
FLUSH_SHARE = 50
LAST_LOOKS, LOOK_AGAIN_SECONDS = 5, 0.5
SESSIONS_KEPT = 50  # apart; those before are summed up, so that the last line stays short
EARLIER = "earlier sessions"  # the name of what stands for those
ATTEMPTS = 3  # of a picture that fails, before it is left alone


@dataclass(frozen=True)
class Failure:
    """A planned picture that the model could not make, `attempts` times so far."""

    index: int
    request_id: str
    error: str
    worker: str
    attempts: int = 1

    @property
    def quarantined(self) -> bool:
        """Whether it is left alone from now on, until a user asks for another try."""
        return self.attempts >= ATTEMPTS


@dataclass(frozen=True)
class Session:
    """The time one worker spent on a shard, in seconds since 1970, and the pictures it made in it.

    `trying`: the pictures that it was at when it last wrote, of a batch and of the one before it that was not written
    down yet; none once it has left in good order.
    """

    worker: str
    device: str
    started: float
    updated: float
    made: int
    trying: Tuple[int, ...] = ()


@dataclass(frozen=True)
class ShardSummary:
    """A shard at a glance. `done`: nothing is left to be made; a picture that failed is, but for ATTEMPTS times."""

    shard: int
    done: bool
    made: int
    flagged: int
    failed: int
    sessions: Tuple[Session, ...]

    @property
    def killed_one(self) -> bool:
        """Whether a worker may have died here."""
        return any(session.trying for session in self.sessions)


@dataclass
class ShardRecords:
    """What is known of a shard's pictures, by their index."""

    images: Dict[int, ImageRecord] = field(default_factory=dict)
    failures: Dict[int, Failure] = field(default_factory=dict)
    sessions: Tuple[Session, ...] = ()


class RecordBook:
    """The records of one shard while a worker makes its pictures."""

    def __init__(self, path: Path, shard: Shard, *, worker: str, device: str, clock: Callable[[], float] = time.time):
        self._path = path
        self._shard = shard
        self._clock = clock
        self._session = Session(worker=worker, device=device, started=clock(), updated=clock(), made=0)
        self._own = ShardRecords()
        self._flushed, self._pause = 0.0, FLUSH_SECONDS
        self._stale: Dict[int, ImageRecord] = {}
        self.known = read_records(path)
        self._before = self.known.sessions

    def remake(self, indices: Iterable[int]) -> None:
        """Forget the records that are known of these pictures, for instance as their files are gone."""
        self._stale = {index: self.known.images.pop(index) for index in indices if index in self.known.images}

    def companions(self) -> List[str]:
        """The other workers that have written here since this book was opened, as far as it has seen."""
        new = [session for session in self.known.sessions if session not in self._before]
        return [session.worker for session in new if session.worker not in (self._session.worker, EARLIER)]

    def deaths(self) -> Mapping[int, int]:
        """Of pictures that are not made, how many others were at them when they last wrote: some may have killed."""
        tried = Counter(index for session in self._others() for index in session.trying)
        return Counter({index: times for index, times in tried.items() if index not in self.known.images})

    def begin(self, indices: Iterable[int]) -> None:
        """Note which pictures are being tried too, from now until they are made or have failed."""
        self._session = dataclasses.replace(self._session, trying=(*self._session.trying, *indices))

    def is_alone(self) -> bool:
        """Whether nobody else is at this shard, nor has died at it, as far as this book has seen.

        Where somebody has, whatever it was at, each batch is to be written before it begins: the dead one may have
        begun another than it had written.
        """
        return not any(session.trying for session in self._others())

    def _others(self) -> List[Session]:
        return [each for each in self.known.sessions if each.worker != self._session.worker]

    def leave(self) -> ShardSummary:
        """Write all that is known; nothing is being tried any more.

        Beside a companion it looks once more: the other may have read before this writing and written after it, and
        has then taken the last of what was made here away.
        """
        self._session = dataclasses.replace(self._session, trying=())
        summary = self.flush(at_once=True)
        for _ in range(LAST_LOOKS if self.companions() else 0):
            time.sleep(LOOK_AGAIN_SECONDS)
            if read_records(self._path).images.keys() >= self._own.images.keys():
                break
            summary = self.flush(at_once=True)
        assert summary is not None  # for the type checker: at_once always writes
        return summary

    def add(self, record: ImageRecord) -> None:
        self._own.images[record.index] = record
        self._session = dataclasses.replace(self._session, made=self._session.made + 1)
        self._tried(record.index)

    def fail(self, image: PlannedImage, error: str) -> None:
        """Note that a picture could not be made, once more than was known."""
        before = self.known.failures.get(image.index)
        attempts = 1 if before is None else before.attempts + 1
        self._own.failures[image.index] = Failure(image.index, image.request_id, error, self._session.worker, attempts)
        self._tried(image.index)

    def _tried(self, index: int) -> None:
        left = tuple(each for each in self._session.trying if each != index)
        self._session = dataclasses.replace(self._session, trying=left)

    def flush(self, *, at_once: bool = False) -> Optional[ShardSummary]:
        """Write what is known; within a second of the last time only if `at_once`, or if this worker is not alone. The
        summary if it was written.

        Where writing is slow, it waits longer: it may take one part in FLUSH_SHARE of the time.
        """
        now = self._clock()
        if not at_once and self.is_alone() and now - self._flushed < self._pause:
            return None
        self._session = dataclasses.replace(self._session, updated=now)
        there = read_records(self._path)
        there.images = {**self.known.images, **there.images}
        for index, record in self._stale.items():
            if there.images.get(index) == record:
                del there.images[index]
        self.known = _merged(there, self._own, self._session)
        summary = _summary(self._shard, self.known)
        known = [
            self.known.images.get(image.index) or self.known.failures.get(image.index) for image in self._shard.images
        ]
        # Not asdict: it copies every value, which takes longer than all else here.
        lines = [*(vars(each) for each in known if each is not None), dataclasses.asdict(summary)]
        write_atomically(self._path, "".join(map(_to_line, lines)).encode("utf-8"))
        self._flushed = self._clock()
        self._pause = max(FLUSH_SECONDS, FLUSH_SHARE * (self._flushed - now))
        return summary


def read_records(path: Path) -> ShardRecords:
    """The records in a file; none if there is no file."""
    records = ShardRecords()
    for values in _lines(path):
        try:
            if "sha256" in values:
                record = ImageRecord(**values)
                records.images[record.index] = record
            elif "error" in values:
                failure = Failure(**values)
                records.failures[failure.index] = failure
            elif "sessions" in values:
                records.sessions = tuple(map(_session, values["sessions"]))
        except (TypeError, KeyError):
            continue
    return records


def read_summary(path: Path) -> Optional[ShardSummary]:
    """The last line of a records file, read alone; None if there is none, or the file is cut."""
    last = (read_end(path, LAST_LINE_BYTES) or b"").rstrip(b"\n").rpartition(b"\n")[2]
    try:
        values = json.loads(last)
        return ShardSummary(**{**values, "sessions": tuple(map(_session, values["sessions"]))})
    except (ValueError, KeyError, TypeError):
        return None


def without_file(records: ShardRecords) -> Set[int]:
    """The pictures that nobody will make a file of: dropped by the safety policy, or failed too often."""
    dropped = {index for index, record in records.images.items() if not record.file}
    return dropped | {index for index, failure in records.failures.items() if failure.quarantined}


def _session(values: Dict[str, Any]) -> Session:
    return Session(**{**values, "trying": tuple(values["trying"])})


def _merged(there: ShardRecords, own: ShardRecords, session: Session) -> ShardRecords:
    """A picture has one record: its file never changes, so whoever wrote the record described the same file."""
    images = {**there.images, **own.images}
    failures = {**there.failures, **own.failures}
    others = tuple(each for each in there.sessions if (each.worker, each.started) != (session.worker, session.started))
    return ShardRecords(
        images=images,
        failures={index: failure for index, failure in failures.items() if index not in images},
        sessions=(*_summed_up(others), session),
    )


def _summed_up(sessions: Tuple[Session, ...]) -> Tuple[Session, ...]:
    """The latest sessions as they are, behind one that stands for all before them."""
    old, new = sessions[: -SESSIONS_KEPT + 1], sessions[-SESSIONS_KEPT + 1 :]
    if len(old) < 2:
        return sessions
    spent = sum(each.updated - each.started for each in old)
    started = min(each.started for each in old)
    made = sum(each.made for each in old)
    return (Session(EARLIER, old[-1].device, started, started + spent, made), *new)


def _summary(shard: Shard, records: ShardRecords) -> ShardSummary:
    return ShardSummary(
        shard=shard.index,
        done=all(image.index in records.images or _is_given_up(records, image.index) for image in shard.images),
        made=len(records.images),
        flagged=sum(record.flagged for record in records.images.values()),
        failed=len(records.failures),
        sessions=records.sessions,
    )


def _is_given_up(records: ShardRecords, index: int) -> bool:
    return index in records.failures and records.failures[index].quarantined


def _to_line(values: Mapping[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")) + "\n"


def _lines(path: Path) -> Iterator[Dict[str, Any]]:
    for line in (read_bytes(path) or b"").split(b"\n"):
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if isinstance(values, dict):
            yield values
