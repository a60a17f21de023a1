"""The pictures of a report: each with what was planned, what became of it, and a small copy of it."""

from __future__ import annotations

import logging
import math
import re
from array import array
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Optional, Sequence, Set, Tuple

from jobs.pages.sweep import Value, describe_all
from jobs.pages.thumbnails import Thumbnail, side_for, thumbnail
from jobs.plan import from_line
from jobs.reading import reading
from jobs.records import Failure
from jobs.rundir import RunDir
from jobs.spec import PlannedImage
from jobs.state.survey import Record
from jobs.storage.pictures import read
from ldm.errors import RunError
from ldm.inference.infotext import describe, format_infotext

log = logging.getLogger(__name__)

# The bytes of a picture's file and its prompt to how well they fit, 0 to 100.
Score = Callable[[bytes, str], float]
Tell = Callable[[int], None]

# Inside a prompt these names would stand between escaped quotes.
EFFORT = re.compile(rb'"(?:height|width|steps|strength)":([0-9.]+)')
DROPPED = "dropped by the safety policy: there is no file"


@dataclass(frozen=True)
class Entry:
    """One picture of the page. `trouble` says why it has no small copy; `fields` are those of its request."""

    image: PlannedImage
    record: Record
    fields: Dict[str, Value]
    thumbnail: Optional[Thumbnail]
    trouble: str
    clip: Optional[float]

    @property
    def infotext(self) -> str:
        """The text inside the file, else what would stand there."""
        inside = self.thumbnail.parameters if self.thumbnail else ""
        return inside or format_infotext(describe(self.image.request))


def read_plan(run: RunDir, wanted: Set[int]) -> Tuple[Dict[int, PlannedImage], array[float]]:
    """The planned pictures of these numbers, and the effort that each picture of the plan takes: steps times pixels.

    Picture n stands on line n of the plan; a line that is not wanted is not parsed, as there may be a million.
    """
    found: Dict[int, PlannedImage] = {}
    efforts = array("d")
    with reading(run.plan_path), run.plan_path.open("rb") as file:
        for number, line in enumerate(file):
            efforts.append(math.prod(float(number) for number in EFFORT.findall(line)))
            if number in wanted:
                found[number] = from_line(line.decode("utf-8"))
    return found, efforts


def make_entries(
    run: RunDir,
    records: Sequence[Record],
    planned: Dict[int, PlannedImage],
    score: Optional[Score] = None,
    tell: Optional[Tell] = None,
) -> List[Entry]:
    """An entry for each record whose picture is in the plan. `tell` is told how many are made, after each."""
    known = [record for record in records if record.index in planned]
    fields = describe_all([planned[record.index].request for record in known])
    side = side_for(len(known))
    entries = []
    for record, values in zip(known, fields):
        entries.append(_entry(run, planned[record.index], record, values, _Look(side, score)))
        if tell is not None:
            tell(len(entries))
    return entries


@dataclass(frozen=True)
class _Look:
    """How pictures are looked at."""

    side: int
    score: Optional[Score]


def _entry(run: RunDir, image: PlannedImage, record: Record, fields: Dict[str, Value], look: _Look) -> Entry:
    if isinstance(record, Failure):
        return Entry(image, record, fields, None, record.error, None)
    if not record.file:
        return Entry(image, record, fields, None, DROPPED, None)
    try:
        data = read(run, image.shard, record)
        small = thumbnail(data, look.side)
    except RunError as error:
        log.warning("picture %d is left out: %s", record.index, error)
        return Entry(image, record, fields, None, str(error), None)
    clip = None if look.score is None else look.score(data, image.request.prompt)
    return Entry(image, record, fields, small, "", clip)


def page_values(entry: Entry) -> Dict[str, Any]:
    """What the page knows of a picture, as plain values."""
    record = entry.record
    values: Dict[str, Any] = {"index": record.index, **entry.fields, "infotext": entry.infotext}
    if entry.trouble:
        values["trouble"] = entry.trouble
    if isinstance(record, Failure):
        return {**values, "failed": True, "attempts": record.attempts, "worker": record.worker}
    values.update(file=record.file, sha256=record.sha256, device=record.device, worker=record.worker)
    values.update(seconds=record.seconds, flagged=record.flagged, note=record.note)
    return values if entry.clip is None else {**values, "clip": round(entry.clip, 2)}
