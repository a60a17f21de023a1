"""The sha256 of files: of large ones computed once, beside other work, and remembered. Needs no torch.

What is remembered lies in the user's cache folder, a few hundred bytes for each large file, by the file's place. It
holds while size, inode and both times of the file are as they were: on a disk and on Lustre the time of the last change
of an inode cannot be set back, so a file that was written to, or replaced, is read again. Removing the folder costs
nothing but seconds.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Dict, Optional

from ldm.errors import OutputError
from ldm.inference.beside import give_way
from ldm.inference.files import write_atomically

LARGE_BYTES = 2**24  # below, reading the file is as quick as looking it up
# A file that was changed less long ago may change again within one tick of its clock, and a server has another clock.
SETTLED_SECONDS = 600.0
BESIDE_PIECE_BYTES = 2**25  # between two pieces a thread waits for its turn, which it gets late while modules load
SHA256 = re.compile("[0-9a-f]{64}")


def sha256_of(path: Path, *, piece: int = 1 << 22) -> str:
    """Hex digest of a file, read in pieces of so many bytes into one buffer."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(piece))
    with path.open("rb", buffering=0) as file:
        while True:
            size = file.readinto(buffer)
            if not size:
                return digest.hexdigest()
            digest.update(buffer[:size])


def remembered_sha256(path: Path, *, piece: int = 1 << 22) -> str:
    """As `sha256_of`, at once where the file is large and was read before, by any process of this user."""
    before = state_of(path)
    place = _place(before["path"])
    if before["size"] < LARGE_BYTES or place is None:
        return sha256_of(path, piece=piece)
    found = _recall(place, before)
    if found is None:
        found = sha256_of(path, piece=piece)
        with contextlib.suppress(OSError):  # it may be gone by now, and was read all the same
            if state_of(path) == before and _is_settled(before):
                _remember(place, {**before, "sha256": found})
    return found


def sha256_beside(path: Path) -> Future[str]:
    """`remembered_sha256`, computed in a thread where no other work needs the processor: seconds for each 4 GB.

    `result` of what is returned waits for the 64 hex digits; OSError where the file cannot be read.
    """
    found: Future[str] = Future()

    def compute() -> None:
        give_way()
        try:
            found.set_result(remembered_sha256(path, piece=BESIDE_PIECE_BYTES))
        except BaseException as error:
            found.set_exception(error)

    threading.Thread(target=compute, name=f"sha256 of {path.name}", daemon=True).start()
    return found


def cache_folder() -> Optional[Path]:
    """Where what may be lost is kept between processes, by the rules of XDG; None for a user who has no home."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    base = named if os.path.isabs(named) else os.path.expanduser("~/.cache")
    return Path(base) / "sdbatch" if os.path.isabs(base) else None


def state_of(path: Path) -> Dict[str, Any]:
    """What changes with a file's content, without the content."""
    with path.open("rb") as file:  # NFS asks its server at an `open`, and may answer `stat` from memory
        found = os.fstat(file.fileno())
    return {
        "path": os.path.realpath(path),
        "size": found.st_size,
        "inode": found.st_ino,
        "mtime_ns": found.st_mtime_ns,
        "ctime_ns": found.st_ctime_ns,
    }


def _place(real: str) -> Optional[Path]:
    folder = cache_folder()
    name = hashlib.sha256(os.fsencode(real)).hexdigest()
    return None if folder is None else folder / "sha256" / f"{name[:32]}.json"


def _recall(place: Path, state: Dict[str, Any]) -> Optional[str]:
    """What is remembered of a file in this state; None where nothing is, or what is there is damaged."""
    try:
        kept = json.loads(place.read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(kept, dict) or {key: kept.get(key) for key in state} != state:
        return None
    found = kept.get("sha256")
    return found if isinstance(found, str) and SHA256.fullmatch(found) else None


def _remember(place: Path, kept: Dict[str, Any]) -> None:
    with contextlib.suppress(OutputError):  # a home that is full or cannot be written to costs the next call seconds
        write_atomically(place, json.dumps(kept).encode("ascii"))


def _is_settled(state: Dict[str, Any]) -> bool:
    return bool(time.time() - max(state["mtime_ns"], state["ctime_ns"]) / 1e9 > SETTLED_SECONDS)
