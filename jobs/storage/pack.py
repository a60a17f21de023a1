"""Packing: the pictures of a complete shard go into one tar that the webdataset library reads, and their files go.

    000000007.json     {"index":7,"request_id":"...","sha256":"...","flagged":false,"request":{...}}
    000000007.png      the picture, byte for byte (or .jpg, .webp)
    000000007.txt      its prompt

Equal pictures give equal tars, whoever packs, and whatever was interrupted before. Several may pack one shard, and each
may be killed at any point: a tar is named once, what it holds is removed only then, and what was left out of it, such
as a picture that failed until a user asked for another try, goes into the shard's next tar.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import hashlib
import io
import json
import logging
import os
import shlex
import tarfile
import time
from pathlib import Path
from typing import Any, BinaryIO, Dict, List, Mapping, Optional, Sequence, Tuple

from jobs.reading import if_there, names_in, read_bytes
from jobs.records import ShardRecords, read_records, without_file
from jobs.rundir import RunDir, RunInfo
from jobs.spec import PlannedImage, Shard
from jobs.storage.pictures import DamagedError, NamesIn, OnePass, files_if_made, indexed, members, packed, size_of, tars
from ldm.errors import RunError
from ldm.inference.files import naming, sweep, write_atomically, write_once_from
from ldm.inference.spec import ImageRecord, to_json

log = logging.getLogger(__name__)

INDEX_SECONDS = 60.0
LEFT_BEHIND_SECONDS = 10.0  # a part of the index that is as old: to write it takes a moment

Packable = Tuple[PlannedImage, ImageRecord]


class _Gone(Exception):
    """A picture's file is not there: packed by another, or lost."""


class Finish(enum.Enum):
    """What is left of a shard: LEFT is what a worker could do."""

    DONE = "done"
    LEFT = "left"
    DAMAGED = "damaged"


def finish_shard(run: RunDir, info: RunInfo, shard: int, names: NamesIn = names_in) -> Finish:
    """Pack a shard of which every picture is made or given up, if the job wants tars.

    One with a damaged file is left as it is, and said to be, so that it does not keep other shards from being finished.
    """
    try:
        own = files_if_made(run, info, shard, names)
        if own is None:
            return Finish.LEFT
        if info.settings.spec.output == "folder" or not own:
            return Finish.DONE
        return Finish.DONE if pack_shard(run, info, shard) else Finish.LEFT
    except DamagedError as error:
        log.error("shard %d is left as it is: %s; python -m jobs verify %s names all that is damaged",
                  shard, error, shlex.quote(str(run.path)))  # fmt: skip
        return Finish.DAMAGED


def pack_run(run: RunDir, info: RunInfo) -> List[int]:
    """Pack the shards of a run, whatever its job says, and bring the index up to date. The shards not complete yet.

    Raises RunError in the end where shards are damaged.
    """
    spec = dataclasses.replace(info.settings.spec, output="webdataset")
    wanted = dataclasses.replace(info, settings=dataclasses.replace(info.settings, spec=spec))
    sweep(run.samples, {run.index_path.name})
    names = OnePass()
    found = {shard: finish_shard(run, wanted, shard, names) for shard in range(info.plan.shards)}
    write_index(run)
    damaged = [shard for shard, finish in found.items() if finish is Finish.DAMAGED]
    if damaged:
        raise RunError(
            f"{len(damaged)} of {info.plan.shards} shards are damaged and not packed, the first is {damaged[0]}; "
            f"python -m jobs verify {shlex.quote(str(run.path))} says what to do"
        )
    return [shard for shard, finish in found.items() if finish is Finish.LEFT]


def pack_shard(run: RunDir, info: RunInfo, shard: int) -> bool:
    """Put the shard's pictures into a tar, and remove their files. Safe to repeat. False if some are still to be made.

    Raises DamagedError where a picture is not the one that was recorded.
    """
    planned, records = run.shard(shard), read_records(run.records_path(shard))
    if not _is_settled(planned, records):
        return False
    pictures = [(image, records.images[image.index]) for image in planned.images if _has_file(image, records)]
    sweep(run.samples, {run.tar_path(shard, part).name for part in range(len(tars(run, shard)) + 1)})
    while True:
        part, held = len(tars(run, shard)), packed(run, shard)
        left = [picture for picture in pictures if picture[0].index not in held]
        if not left:
            break
        try:
            _write_next(run, shard, part, left)
        except _Gone as gone:
            if len(tars(run, shard)) == part:  # no other packer has taken it
                log.error("%s; python -m jobs resume makes it again", gone)
                return False
    if _index_is_due(run, info):
        write_index(run)
    _remove_files(run, [image for image, _ in pictures])
    return True


def write_index(run: RunDir) -> None:
    """Have samples/index.json name each tar with its pictures; what it does not say yet is looked up.

    Of several who write it at once, the last one sees the tars of all, because each looks again after it has written.
    """
    listed = _tar_names(run)
    while listed:
        known = indexed(run.index_path)
        entries = [entry for entry in (_entry(run.samples / name, known.get(name, {})) for name in listed) if entry]
        if entries != list(known.values()):
            index = {"__kind__": "wids-shard-index-v1", "wids_version": 1, "shardlist": entries}
            write_atomically(run.index_path, (json.dumps(index, indent=1) + "\n").encode("ascii"))
        before, listed = listed, _tar_names(run)
        if listed == before:
            break
    sweep(run.samples, {run.index_path.name}, older=LEFT_BEHIND_SECONDS)


def _index_is_due(run: RunDir, info: RunInfo) -> bool:
    """Of hundreds who pack side by side, one a minute writes the index, and who finds that all is packed."""
    there = if_there(run.index_path, os.stat)
    if there is None or time.time() - there.st_mtime > INDEX_SECONDS:
        return True
    named = set(_tar_names(run))
    return all(
        run.tar_path(shard).name in named or files_if_made(run, info, shard) == set()  # all of it was dropped
        for shard in range(info.plan.shards)
    )


def _is_settled(shard: Shard, records: ShardRecords) -> bool:
    """Whether every picture has a record of this plan, or has failed too often."""
    given_up = without_file(records) - records.images.keys()
    return all(
        records.images[image.index].request_id == image.request_id
        if image.index in records.images
        else image.index in given_up
        for image in shard.images
    )


def _has_file(image: PlannedImage, records: ShardRecords) -> bool:
    return image.index in records.images and bool(records.images[image.index].file)


def _write_next(run: RunDir, shard: int, part: int, pictures: Sequence[Packable]) -> None:
    """Write the shard's next tar, unless another packer is quicker."""
    tar = run.tar_path(shard, part)
    if write_once_from(tar, lambda file: _fill(file, run, pictures)):
        _sync(run.samples)
        log.info("%s: %d pictures", tar.name, len(pictures))


def _fill(file: BinaryIO, run: RunDir, pictures: Sequence[Packable]) -> None:
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for image, record in pictures:
            for suffix, content in sorted(_sample(run, image, record).items()):
                member = tarfile.TarInfo(f"{image.index:09}{suffix}")  # mode 644, no times and no users
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def _sample(run: RunDir, image: PlannedImage, record: ImageRecord) -> Dict[str, bytes]:
    """The files of one sample, by suffix."""
    path = run.image_path(image.file)
    data = read_bytes(path)
    if data is None:
        raise _Gone(f"picture {image.index} has a record and no file: {path}")
    if hashlib.sha256(data).hexdigest() != record.sha256:
        raise DamagedError(
            f"{path} is not as it was when it was made: its sha256 is not the recorded one; "
            f"remove it, then python -m jobs resume makes it again"
        )
    described = json.dumps(description(image, record), ensure_ascii=False, separators=(",", ":"))
    return {".json": described.encode("utf-8"), path.suffix: data, ".txt": image.request.prompt.encode("utf-8")}


def description(image: PlannedImage, record: ImageRecord) -> Dict[str, Any]:
    """What a tar says of a picture: only what follows from the plan and the picture, so not who made it, and when."""
    return {
        "index": image.index,
        "request_id": image.request_id,
        "sha256": record.sha256,
        "flagged": record.flagged,
        "request": to_json(image.request),
    }


def _sync(folder: Path) -> None:
    """Have the names in a folder on the disk, where the file system can: files are removed on the strength of one."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove_files(run: RunDir, images: Sequence[PlannedImage]) -> None:
    """Remove the files of pictures that are in tars, what killed writers left of them, and folders that are empty."""
    names: Dict[Path, List[str]] = {}
    for image in images:
        path = run.image_path(image.file)
        names.setdefault(path.parent, []).append(path.name)
    for folder, own in names.items():
        with naming(folder), contextlib.suppress(FileNotFoundError):
            for name in set(os.listdir(folder)).intersection(own):
                with contextlib.suppress(FileNotFoundError):
                    (folder / name).unlink()
        sweep(folder, own)
        with contextlib.suppress(OSError):  # other shards' pictures are there
            folder.rmdir()


def _tar_names(run: RunDir) -> List[str]:
    return sorted(name for name in names_in(run.samples) if name.endswith(".tar") and name[0] != ".")


def _entry(tar: Path, known: Mapping[str, Any]) -> Optional[Mapping[str, Any]]:
    """What the index says of a tar: what it said before, if that was of this file; None of one that is damaged."""
    size = size_of(tar)
    if known.get("filesize") == size:
        return known
    with contextlib.suppress(DamagedError):  # for whoever finishes its own shard
        return {"url": tar.name, "nsamples": len(members(tar)), "filesize": size}
    return None
