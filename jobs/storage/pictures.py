"""Where a picture's bytes are: in a file of its own, or in a tar of its shard. Nothing else knows the difference.

    samples/000/000007.png     the picture's own file, for good or until its shard is packed
    samples/00000.tar          a packed shard in the layout of webdataset: 000000007.json, .png, .txt, and so on
    samples/00000-1.tar        likewise, of pictures that were made after the shard had been packed
    samples/index.json         how many pictures are in which tar, in the form that wids reads

A tar is whole or absent, never changes, and is there before the pictures' own files go, so a picture is always in one
of the two. Who finds it in both has met a packer that was killed.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Collection, Dict, FrozenSet, List, Mapping, Optional, Set, Union

from jobs.plan import SUFFIXES
from jobs.reading import TRIES, if_there, names_in, patiently, read_bytes
from jobs.reading import is_there as path_is_there
from jobs.records import read_records, read_summary, without_file
from jobs.rundir import RunDir, RunInfo, shard_files, shard_indices
from jobs.spec import PlannedImage
from ldm.errors import RunError
from ldm.inference.digests import sha256_of
from ldm.inference.files import naming, write_once
from ldm.inference.spec import ImageRecord

TAR_END = bytes(2 * tarfile.BLOCKSIZE)
TARS_KEPT = 8  # tables of tars in memory, each of a thousand pictures

Known = Union[PlannedImage, ImageRecord]
NamesIn = Callable[[Path], Collection[str]]


class DamagedError(RunError):
    """A picture's file, or a tar, has another content than it was given: more work does not mend it, a user does."""


@dataclass(frozen=True)
class Place:
    """Where in a tar a picture's bytes are."""

    tar: Path
    offset: int
    size: int


def is_there(run: RunDir, shard: int, picture: Known) -> bool:
    """Whether a picture has its file, or is in a tar of its shard, which is looked into once and not per picture."""
    return path_is_there(run.image_path(picture.file)) or picture.index in packed(run, shard)


def read(run: RunDir, shard: int, picture: Known) -> bytes:
    """A picture's bytes; RunError if it is nowhere."""
    path = run.image_path(picture.file)
    data = read_bytes(path)
    if data is not None:
        return data
    place = packed(run, shard).get(picture.index)
    if place is None:
        raise RunError(f"picture {picture.index} is not there: {path}; python -m jobs resume makes it again")
    return read_place(place)


def read_place(place: Place) -> bytes:
    """The bytes at a place in a tar."""

    def piece(tar: Path) -> bytes:
        with tar.open("rb") as file:
            file.seek(place.offset)
            return file.read(place.size)

    return patiently(place.tar, piece)


def keep(run: RunDir, picture: PlannedImage, data: bytes) -> str:
    """Write a picture's file unless another worker's is there, or in a tar; the sha256 of what stands."""
    path = run.image_path(picture.file)
    for _ in range(TRIES):
        written = write_once(path, data)
        # Another worker of this shard packs before it removes: what could be written has been packed, or was not there.
        place = packed(run, picture.shard).get(picture.index)
        if place is not None:
            if written:
                with naming(path), contextlib.suppress(FileNotFoundError):
                    path.unlink()
            return hashlib.sha256(read_place(place)).hexdigest()
        standing = hashlib.sha256(data).hexdigest() if written else if_there(path, sha256_of)
        if standing is not None:
            return standing
    raise RunError(f"{path} comes and goes: another process removes it; once that has ended, python -m jobs resume")


def tars(run: RunDir, shard: int) -> List[Path]:
    """The tars of a shard that are there, oldest first."""
    found: List[Path] = []
    while _has_content(run.tar_path(shard, len(found))):
        found.append(run.tar_path(shard, len(found)))
    return found


def packed(run: RunDir, shard: int) -> Mapping[int, Place]:
    """Where in tars the pictures of a shard are, by index; of a picture that is in two, the first."""
    found: Dict[int, Place] = {}
    for tar in tars(run, shard):
        found = {**members(tar), **found}
    return found


def members(tar: Path) -> Mapping[int, Place]:
    """Where the pictures in one tar are, by index; RunError if it is damaged."""
    there = patiently(tar, os.stat)
    return _members(tar, there.st_size, there.st_mtime_ns)


def is_complete(run: RunDir, info: RunInfo, shard: int, names: NamesIn = names_in) -> bool:
    """Whether nothing is left to do: all of the shard is made, and in tars if the job wants that."""
    own = files_if_made(run, info, shard, names)
    return own is not None and (not own or info.settings.spec.output == "folder")


def files_if_made(run: RunDir, info: RunInfo, shard: int, names: NamesIn = names_in) -> Optional[Set[int]]:
    """What `own_files` gives of a shard of which nothing is left to be made; None of any other.

    Its records say so, and its pictures are there.
    """
    summary = read_summary(run.records_path(shard))
    if summary is None or not summary.done:
        return None
    own = own_files(run, info, shard, names)
    planned = len(shard_indices(info.plan, shard))
    if planned == (len(own) or sum(map(samples_in, tars(run, shard)))):
        return own
    absent = set(shard_indices(info.plan, shard)) - own - packed(run, shard).keys()
    return own if absent <= without_file(read_records(run.records_path(shard))) else None


def own_files(run: RunDir, info: RunInfo, shard: int, names: NamesIn = names_in) -> Set[int]:
    """The indices of a shard's pictures that have a file of their own. One listing a folder."""
    folders: Dict[Path, Set[str]] = {}
    for path in shard_files(run, info, shard):
        folders.setdefault(path.parent, set()).add(path.name)
    return {int(Path(name).stem) for folder, own in folders.items() for name in own.intersection(names(folder))}


class OnePass:
    """The names in folders, for one pass over neighbouring shards: it keeps the last folder, and never looks again."""

    def __init__(self) -> None:
        self._folder: Optional[Path] = None
        self._names: FrozenSet[str] = frozenset()

    def __call__(self, folder: Path) -> Collection[str]:
        if folder != self._folder:
            self._names = frozenset(names_in(folder))
            self._folder = folder
        return self._names


def samples_in(tar: Path) -> int:
    """How many pictures are in a tar: what the index says if it speaks of this file, or else counted."""
    entry = indexed(tar.parent / "index.json").get(tar.name, {})
    return int(entry["nsamples"]) if entry.get("filesize") == size_of(tar) else len(members(tar))


def size_of(tar: Path) -> int:
    """In bytes."""
    return patiently(tar, os.stat).st_size


def indexed(path: Path) -> Mapping[str, Mapping[str, Any]]:
    """The entries of index.json by the name of the tar; none where there is no index that can be read."""

    def entries(path: Path) -> Mapping[str, Mapping[str, Any]]:
        there = path.stat()
        return _indexed(path, there.st_size, there.st_mtime_ns, there.st_ino)

    return if_there(path, entries) or {}


@functools.lru_cache(maxsize=1)
def _indexed(path: Path, size: int, changed: int, inode: int) -> Mapping[str, Mapping[str, Any]]:
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return {entry["url"]: entry for entry in json.loads(path.read_bytes())["shardlist"]}
    return {}


@functools.lru_cache(maxsize=TARS_KEPT)
def _members(tar: Path, size: int, changed: int) -> Mapping[int, Place]:
    try:
        return patiently(tar, functools.partial(_table, size=size))
    except (tarfile.TarError, ValueError, EOFError) as error:
        raise DamagedError(
            f"{tar} is damaged: {error}; remove it, then python -m jobs resume makes it again"
        ) from error


def _table(tar: Path, size: int) -> Mapping[int, Place]:
    with tarfile.open(tar, "r:") as file:
        found = {
            int(Path(member.name).stem): Place(tar, member.offset_data, member.size)
            for member in file
            if Path(member.name).suffix in SUFFIXES.values()
        }
    with tar.open("rb") as raw:
        raw.seek(max(0, size - len(TAR_END)))
        if raw.read() != TAR_END:
            raise ValueError("it has no end")
    return found


def _has_content(tar: Path) -> bool:
    """A name may stand for an empty file for a moment, on a file system without hard links."""
    there = if_there(tar, os.stat)
    return there is not None and there.st_size > 0
