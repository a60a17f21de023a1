"""The worker: makes the pictures of its shards that are not there yet, and writes down each of them.

It knows no scheduler and no model: what makes pictures is handed in. It may be killed at any point and started again,
and a second one may run beside it: a picture's file is written once and stays, a record describes the file that stays.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple, Union

from jobs.reading import is_there
from jobs.records import Failure, RecordBook, ShardSummary
from jobs.rundir import RunDir
from jobs.spec import PlannedImage, Shard
from ldm.errors import GenerationError, RequestError
from ldm.inference.files import sha256_of, write_once
from ldm.inference.spec import GenerationRequest, ImageRecord

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Picture:
    """A picture as it goes to the disk: the bytes of its file, None if the safety policy drops it."""

    data: Optional[bytes]
    flagged: bool
    seconds: float


Generate = Callable[[Sequence[GenerationRequest]], Sequence[Picture]]
Outcome = Tuple[PlannedImage, Union[Picture, Exception]]


@dataclass(frozen=True)
class Worker:
    """Who makes the pictures, as it is written into records, and how many at a time."""

    name: str
    device: str
    batch_size: int


def run_shard(shard: Shard, run: RunDir, generate: Generate, worker: Worker) -> ShardSummary:
    """Make the shard's pictures that are not there yet, and bring its records up to date.

    A picture that cannot be made is recorded as failed, the others go on. Safe to repeat.
    """
    book = RecordBook(run.records_path(shard.index), shard, worker=worker.name, device=worker.device)
    todo = missing_images(shard, run, book)
    book.remake(image.index for image in todo)
    log.info("shard %d: %d of %d pictures to make", shard.index, len(todo), len(shard.images))
    waiting = list(batches(todo, worker.batch_size))
    while waiting:
        batch = _still_missing(waiting.pop(_next(book, worker)), run, book)
        for image, result in _outcomes(batch, generate) if batch else ():
            if isinstance(result, Picture):
                book.add(_keep(image, result, run, worker))
            else:
                log.error("picture %d failed: %s", image.index, result)
                book.fail(Failure(image.index, image.request_id, str(result), worker.name))
        book.flush()
    summary = book.flush(at_once=True)
    assert summary is not None  # for the type checker: at_once always writes
    return summary


def _still_missing(batch: Sequence[PlannedImage], run: RunDir, book: RecordBook) -> List[PlannedImage]:
    """Without what another worker of this shard has made and recorded meanwhile."""
    return [image for image in batch if not _is_made(book.known.images.get(image.index), image, run)]


def _next(book: RecordBook, worker: Worker) -> int:
    """Which of the waiting batches is next: of two workers one comes from the end, so that they meet and not race."""
    return -1 if any(name < worker.name for name in book.companions()) else 0


def missing_images(shard: Shard, run: RunDir, book: RecordBook) -> List[PlannedImage]:
    """The pictures without a record, or whose file is gone. One that was dropped has a record and no file."""
    return [image for image in shard.images if not _is_made(book.known.images.get(image.index), image, run)]


def batches(images: Sequence[PlannedImage], batch_size: int) -> Iterator[List[PlannedImage]]:
    """Pictures that can be sampled together (same size, sampler and strength), at most `batch_size` at a time."""
    alike: Dict[Any, List[PlannedImage]] = {}
    for image in images:
        request = image.request
        strength = request.init.strength if request.init else None
        alike.setdefault((request.height, request.width, request.sampler, strength), []).append(image)
    for group in alike.values():
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size]


def _is_made(record: Optional[ImageRecord], image: PlannedImage, run: RunDir) -> bool:
    if record is None or record.request_id != image.request_id:
        return False
    return not record.file or is_there(run.image_path(record.file))


def _outcomes(batch: Sequence[PlannedImage], generate: Generate) -> List[Outcome]:
    """Each picture of the batch or why it failed; a batch that fails is taken apart to find the one that did."""
    try:
        return list(zip(batch, generate([image.request for image in batch])))
    except (GenerationError, RequestError) as error:
        if len(batch) == 1:
            return [(batch[0], error)]
        return [outcome for image in batch for outcome in _outcomes([image], generate)]


def _keep(image: PlannedImage, picture: Picture, run: RunDir, worker: Worker) -> ImageRecord:
    """Write the picture's file, unless another worker's is there, and describe the file that stands there."""
    file, sha256 = "", ""
    if picture.data is not None:
        path = run.image_path(image.file)
        file = image.file
        written = write_once(path, picture.data)
        sha256 = hashlib.sha256(picture.data).hexdigest() if written else sha256_of(path)
    return ImageRecord(
        index=image.index,
        request_id=image.request_id,
        file=file,
        sha256=sha256,
        prompt=image.request.prompt,
        seed=image.request.seed,
        flagged=picture.flagged,
        seconds=round(picture.seconds, 4),
        device=worker.device,
        worker=worker.name,
    )
