"""The worker: makes the pictures of its shards that are not there yet, and writes down each of them.

It knows no scheduler and no model: what makes pictures is handed in. It may be killed at any point and started again,
and a second one may run beside it: a picture's file is written once and stays, a record describes the file that stays.
Which pictures share a batch follows from the plan alone. A batch of which one picture is missing is made whole again
and the others thrown away, so that the picture comes back to the byte: in another batch its last bits may differ.

While a batch is sampled, the one before it is written and recorded in a thread behind, its pictures encoded by a few
more. The book of records has no lock: it is the thread's from `submit` until `settle`, and the sampling one's from
there to the next `submit`.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import (
    Any,
    Callable,
    Container,
    Dict,
    Iterable,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Sequence,
    Set,
    Tuple,
    Union,
)

from jobs.records import ATTEMPTS, RecordBook, ShardSummary
from jobs.rundir import RunDir
from jobs.spec import PlannedImage, Shard
from jobs.storage.pictures import is_there, keep
from jobs.worker.behind import Behind
from jobs.worker.measuring import Findings
from jobs.worker.stop import Halt, Limits
from ldm.errors import GenerationError, NoMemoryError, RequestError, SdbatchError
from ldm.inference.beside import processors
from ldm.inference.files import sweep
from ldm.inference.spec import GenerationRequest, ImageRecord

log = logging.getLogger(__name__)

# Threads that encode the pictures of a batch, where there are processors for them: few steps on a card take less time
# than one thread would behind them, and behind the last batch nothing is sampled.
ENCODERS = 4


@dataclass(frozen=True)
class Picture:
    """A picture on its way to the disk: what makes the bytes of its file, None if the safety policy drops it.

    `encode` is called once, in another thread. A RequestError of it fails this picture alone.
    """

    encode: Optional[Callable[[], bytes]]
    flagged: bool
    seconds: float
    note: str = ""


# What becomes of each request, in their order: a picture, or why there is none.
Generate = Callable[[Sequence[GenerationRequest]], Sequence[Union[Picture, GenerationError]]]


class Loaded(NamedTuple):
    """A model in memory: what makes pictures with it, the name of its device, what measures batches of a picture."""

    generate: Generate
    device: str
    measure: Optional[Callable[[GenerationRequest], Findings]] = None


Outcome = Tuple[PlannedImage, Union[Picture, SdbatchError]]


@dataclass(frozen=True)
class Taken:
    """A batch that was taken up, and the numbers of those of its pictures that are missing."""

    images: List[PlannedImage]
    missing: Set[int]


@dataclass
class Worker:
    """Who makes the pictures, as it is written into records, and how many at a time.

    `batch_size` is the plan's, by which batches are told apart; `room` is how many of one are sampled at once: all
    where it is None, fewer where the user says so, and it shrinks when the memory is too small. `beat` is called once a
    batch is recorded, in the thread that did it, with the numbers of pictures made and failed in it.
    """

    name: str
    device: str
    batch_size: int
    beat: Callable[[int, int], None] = lambda made, failed: None
    room: Optional[int] = None


def run_shard(
    shard: Shard, run: RunDir, generate: Generate, worker: Worker, limits: Optional[Limits] = None
) -> ShardSummary:
    """Make the shard's pictures that are not there yet, and bring its records up to date. Safe to repeat.

    A picture that cannot be made is recorded as failed, the others go on. Raises Halt where `limits` say so, and what
    the file system raises; what was made until then is recorded.
    """
    limits = limits or Limits()
    book = RecordBook(run.records_path(shard.index), shard, worker=worker.name, device=worker.device)
    todo = missing_images(shard, run, book)
    book.remake(image.index for image in todo)
    log.info("shard %d: %d of %d pictures to make", shard.index, len(todo), len(shard.images))
    take = functools.partial(_take_up, _waiting(shard, todo, book, worker), run, worker, book, limits)
    try:
        with ThreadPoolExecutor(min(ENCODERS, processors()), "encoder") as encoders:
            write_down = functools.partial(_write_down, run, worker, book, limits, encoders)
            _make(take, generate, write_down, worker, book, limits)
    except Halt:
        book.leave()
        raise
    except BaseException:
        with contextlib.suppress(SdbatchError):  # a full disk refuses this too, and the first reason is the one to tell
            book.flush(at_once=True)  # still being tried are the pictures that may have been the reason
        raise
    summary = book.leave()
    sweep_shards([shard.index], (run.image_path(image.file) for image in shard.images), run)
    return summary


def _make(
    take: Callable[[], Optional[Taken]],
    generate: Generate,
    write_down: Callable[[Sequence[Outcome]], None],
    worker: Worker,
    book: RecordBook,
    limits: Limits,
) -> None:
    """Sample one batch after the other, and have each written down behind the next. All is written at the end."""
    made: List[Outcome] = []
    with Behind() as behind:
        while True:
            taken = None
            try:
                behind.settle()
                taken = take()
                alone = book.is_alone()
            finally:  # whatever came between: what was made is not lost
                if made or taken:
                    behind.submit(functools.partial(write_down, made))
            if taken is None:
                return
            if not (alone and made):  # the first batch too is told as tried before it can kill
                behind.settle()
            with limits.batch():
                outcomes = _outcomes(taken.images, generate, worker)
            made = [outcome for outcome in outcomes if outcome[0].index in taken.missing]


def _take_up(
    waiting: List[List[PlannedImage]], run: RunDir, worker: Worker, book: RecordBook, limits: Limits
) -> Optional[Taken]:
    """The next batch of which something is missing, noted as being tried; None if there is none. Halt at a limit."""
    while waiting:
        batch = _next(waiting, book, worker)
        missing = {image.index for image in batch if not is_settled(image, run, book)}
        if missing:
            limits.check()
            book.begin(missing)
            return Taken(_to_make(batch, missing, book), missing)
    return None


def _write_down(
    run: RunDir,
    worker: Worker,
    book: RecordBook,
    limits: Limits,
    encoders: ThreadPoolExecutor,
    outcomes: Sequence[Outcome],
) -> None:
    """Encode, keep and record a batch, and what is being tried by now, be it the first and this one none."""
    with limits.writing():
        begun = [(image, _begun(result, encoders)) for image, result in outcomes]
        made = sum([_write_down_one(*outcome, run, worker, book) for outcome in begun])
        book.flush()
        if outcomes:
            worker.beat(made, len(outcomes) - made)


def _begun(result: Union[Picture, SdbatchError], encoders: ThreadPoolExecutor) -> Union[Picture, SdbatchError]:
    """The picture, being encoded."""
    if isinstance(result, Picture) and result.encode is not None:
        return replace(result, encode=encoders.submit(result.encode).result)
    return result


def _write_down_one(
    image: PlannedImage, result: Union[Picture, SdbatchError], run: RunDir, worker: Worker, book: RecordBook
) -> bool:
    """Keep a picture, or note that there is none; whether there is one."""
    if isinstance(result, Picture):
        try:
            book.add(_keep(image, result, run, worker))
            return True
        except RequestError as error:
            result = error
    log.error("picture %d failed: %s", image.index, result)
    book.fail(image, str(result))
    return False


def _waiting(shard: Shard, todo: Sequence[PlannedImage], book: RecordBook, worker: Worker) -> List[List[PlannedImage]]:
    """The batches with something left to make; those at which workers have died come last, for they may kill again.

    One at which as many have died as a picture may fail is taken apart, so that only one of its pictures kills again.
    """
    wanted, deaths = {image.index for image in todo}, book.deaths()

    def killed(batch: Sequence[PlannedImage]) -> int:
        return max(deaths[image.index] for image in batch)

    left: List[List[PlannedImage]] = []
    for batch in batches(shard.images, worker.batch_size):
        parts = [batch] if killed(batch) < ATTEMPTS else [[image] for image in batch]
        left += [part for part in parts if wanted.intersection(image.index for image in part)]
    return sorted(left, key=killed)


def _to_make(batch: Sequence[PlannedImage], missing: Container[int], book: RecordBook) -> List[PlannedImage]:
    """The whole batch; of one where only failed pictures are left, those alone."""
    left = [image for image in batch if image.index in missing]
    return left if all(image.index in book.known.failures for image in left) else list(batch)


def _next(waiting: List[List[PlannedImage]], book: RecordBook, worker: Worker) -> List[PlannedImage]:
    """Take the next of the waiting batches. Of two workers one comes from the end, so that they meet and not race."""
    if not any(name < worker.name for name in book.companions()):
        return waiting.pop(0)
    suspects = book.deaths()
    trusted = [number for number, batch in enumerate(waiting) if not any(i.index in suspects for i in batch)]
    return waiting.pop(trusted[-1] if trusted else -1)


def missing_images(shard: Shard, run: RunDir, book: RecordBook) -> List[PlannedImage]:
    """The pictures that are still to be made."""
    return [image for image in shard.images if not is_settled(image, run, book)]


def is_settled(image: PlannedImage, run: RunDir, book: RecordBook) -> bool:
    """Whether a picture has its record and file, or is left alone: it was dropped, or has failed too often."""
    record, failure = book.known.images.get(image.index), book.known.failures.get(image.index)
    if record is None or record.request_id != image.request_id:
        return failure is not None and failure.quarantined and failure.request_id == image.request_id
    return not record.file or is_there(run, image.shard, record)


def batches(images: Sequence[PlannedImage], batch_size: int) -> Iterator[List[PlannedImage]]:
    """Pictures that can be sampled together (same size, sampler and strength), at most `batch_size` at a time."""
    alike: Dict[Any, List[PlannedImage]] = {}
    for image in images:
        alike.setdefault(image.request.batch_key, []).append(image)
    for group in alike.values():
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size]


def sweep_shards(shards: Sequence[int], files: Iterable[Path], run: RunDir) -> None:
    """Remove what killed workers of these shards have begun; `files` are their pictures, in order. One listing a
    folder.
    """
    records = [run.records_path(shard) for shard in shards]
    for folder, paths in itertools.groupby(itertools.chain(records, files), key=lambda path: path.parent):
        sweep(folder, {path.name for path in paths})


def _outcomes(batch: Sequence[PlannedImage], generate: Generate, worker: Worker) -> List[Outcome]:
    outcomes: List[Outcome] = []
    while len(outcomes) < len(batch):
        outcomes += _attempt(batch[len(outcomes) :][: worker.room or len(batch)], generate, worker)
    return outcomes


def _attempt(part: Sequence[PlannedImage], generate: Generate, worker: Worker) -> List[Outcome]:
    """Each picture of the part or why it failed. One that does not fit into the memory is halved, as are all after it;
    one that fails as a whole is taken apart to find the picture that did.
    """
    try:
        return list(zip(part, generate([image.request for image in part])))
    except NoMemoryError as error:
        if len(part) == 1:
            return [(part[0], error)]
        worker.room = len(part) // 2
        log.warning("no memory for %d pictures at once (%s): going on with %d", len(part), error, worker.room)
        return _outcomes(part, generate, worker)
    except (GenerationError, RequestError) as error:
        if len(part) == 1:
            return [(part[0], error)]
        return [outcome for image in part for outcome in _attempt([image], generate, worker)]


def _keep(image: PlannedImage, picture: Picture, run: RunDir, worker: Worker) -> ImageRecord:
    """Keep the picture, unless another worker's is there, and describe the one that stands."""
    file, sha256 = "", ""
    if picture.encode is not None:
        file, sha256 = image.file, keep(run, image, picture.encode())
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
        note=picture.note,
    )
