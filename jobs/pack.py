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
import hashlib
import io
import json
import logging
import os
import tarfile
from pathlib import Path
from typing import Any, BinaryIO, Collection, Dict, List, Mapping, Sequence, Tuple

from jobs.pictures import indexed, is_complete, is_made, members, packed, tars
from jobs.reading import reading
from jobs.records import ShardRecords, read_records, without_file
from jobs.rundir import RunDir, RunInfo
from jobs.spec import PlannedImage, Shard
from ldm.errors import RunError
from ldm.inference.files import naming, sweep, write_atomically, write_once_from
from ldm.inference.spec import ImageRecord, to_json

log = logging.getLogger(__name__)

Packable = Tuple[PlannedImage, ImageRecord]


class _Gone(Exception):
    """A picture's file is not there: packed by another, or lost."""


def finish_shard(run: RunDir, info: RunInfo, shard: int) -> bool:
    """Pack a shard of which every picture is made or given up, if the job wants tars. Whether nothing is left to do."""
    if is_complete(run, info, shard):
        return True
    return is_made(run, info, shard) and pack_shard(run, shard)


def pack_run(run: RunDir, info: RunInfo) -> List[int]:
    """Pack the shards of a run, whatever its job says, and bring the index up to date. The shards not complete yet."""
    spec = dataclasses.replace(info.settings.spec, output="webdataset")
    wanted = dataclasses.replace(info, settings=dataclasses.replace(info.settings, spec=spec))
    incomplete = [shard for shard in range(info.plan.shards) if not finish_shard(run, wanted, shard)]
    known = indexed(run.index_path)
    named = _tar_names(run)
    wrong = {name for name in named if known.get(name, {}).get("filesize") != (run.samples / name).stat().st_size}
    if wrong or known.keys() - set(named):
        write_index(run, fresh=wrong)
    return incomplete


def pack_shard(run: RunDir, shard: int) -> bool:
    """Put the shard's pictures into a tar, and remove their files. Safe to repeat. False if some are still to be made.

    Raises RunError where a picture is not the one that was recorded.
    """
    planned, records = run.shard(shard), read_records(run.records_path(shard))
    if not _is_settled(planned, records):
        return False
    pictures = [(image, records.images[image.index]) for image in planned.images if _has_file(image, records)]
    begun = [*tars(run, shard), run.tar_path(shard, len(tars(run, shard))), run.index_path]
    sweep(run.samples, {path.name for path in begun})
    while True:
        there, held = tars(run, shard), packed(run, shard)
        left = [picture for picture in pictures if picture[0].index not in held]
        if not left:
            break
        _write_next(run, shard, len(there), left)
    write_index(run, fresh={tar.name for tar in there})
    _remove_files(run, [image for image, _ in pictures])
    return True


def write_index(run: RunDir, *, fresh: Collection[str] = ()) -> None:
    """Write samples/index.json: each tar with its pictures; what it says of `fresh` ones and new ones is looked up.

    Of several who write it at once, the last one sees the tars of all, because each looks again after it has written.
    """
    listed = _tar_names(run)
    while listed:
        known = {name: entry for name, entry in indexed(run.index_path).items() if name not in fresh}
        entries = [known.get(name) or _entry(run.samples / name) for name in listed]
        index = {"__kind__": "wids-shard-index-v1", "wids_version": 1, "shardlist": entries}
        write_atomically(run.index_path, (json.dumps(index, indent=1) + "\n").encode("ascii"))
        before, listed = listed, _tar_names(run)
        if listed == before:
            return


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
    try:
        if write_once_from(tar, lambda file: _fill(file, run, pictures)):
            _sync(run.samples)
            log.info("%s: %d pictures", tar.name, len(pictures))
    except _Gone as gone:
        if len(tars(run, shard)) == part:
            raise RunError(f"{gone}; python -m jobs resume makes it again") from gone


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
    with reading(path):
        try:
            data = path.read_bytes()
        except FileNotFoundError as error:
            raise _Gone(f"picture {image.index} has a record and no file: {path}") from error
    if hashlib.sha256(data).hexdigest() != record.sha256:
        raise RunError(
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
    with reading(run.samples):
        return sorted(name for name in os.listdir(run.samples) if name.endswith(".tar") and name[0] != ".")


def _entry(tar: Path) -> Mapping[str, Any]:
    return {"url": tar.name, "nsamples": len(members(tar)), "filesize": tar.stat().st_size}
