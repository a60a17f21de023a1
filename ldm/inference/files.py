"""Files that are whole or absent: the one way in which a result reaches the disk.

Written beside the target, synced, then given its name in one step. Needs neither torch nor Pillow, so that the control
plane may use it too. Every failure is an `OutputError` that names the file; nothing half-written stays behind.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import time
import uuid
from pathlib import Path
from typing import Iterator

from ldm.errors import OutputError

ADVICE = {
    errno.ENOSPC: "free some space or choose another folder",
    errno.EDQUOT: "the quota is used up: free some space or choose another folder",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.EROFS: "choose a folder that you may write to",
    errno.ENOTDIR: "a file stands where a folder must be: choose another name",
    errno.EEXIST: "a file stands where a folder must be: choose another name",
}

# Without hard links a name is taken by an empty file first: one that is as old has lost its writer.
PLACEHOLDER_SECONDS = 2.0


def write_atomically(path: Path, data: bytes) -> None:
    """Readers see no file or the whole file, never a part, even after a node has crashed."""
    with _written_beside(path.parent, path.name, data) as part, naming(path):
        os.replace(part, path)


def write_once(path: Path, data: bytes) -> bool:
    """As `write_atomically`, but a file that is there already stays. Says whether this call wrote it."""
    with _written_beside(path.parent, path.name, data) as part, naming(path):
        return _name_exclusively(part, path)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn the failure to write something at `path` into an OutputError that names it."""
    try:
        yield
    except OSError as error:
        advice = ADVICE.get(error.errno or 0, "choose another folder")
        raise OutputError(f"cannot write {path}: {error.strerror}; {advice}") from error


class NumberedFiles:
    """Files of one folder named by a running number, such as `{:05}.png`; none is ever overwritten.

    The first number is one above the highest there, so a deleted file leaves its gap. Two processes may write to one
    folder: a number that the other has taken is stepped over.
    """

    def __init__(self, folder: Path, pattern: str) -> None:
        self.folder = folder
        self.pattern = pattern
        self.next_number = _highest(folder, pattern) + 1

    def write(self, data: bytes) -> Path:
        """Write `data` under the next free number and return its path."""
        with _written_beside(self.folder, self.pattern.format(self.next_number), data) as part:
            while True:
                path = self.folder / self.pattern.format(self.next_number)
                self.next_number += 1
                with naming(path):
                    if _name_exclusively(part, path):
                        return path


def make_folder(folder: Path) -> Path:
    """Create `folder` and prove that it can be written to, before the long work whose results go there."""
    with _written_beside(folder, "", b"\0"):
        return folder


def sha256_of(path: Path) -> str:
    """Hex digest of a file, read in pieces of 8 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for piece in iter(lambda: file.read(1 << 23), b""):
            digest.update(piece)
    return digest.hexdigest()


@contextlib.contextmanager
def _written_beside(folder: Path, name: str, data: bytes) -> Iterator[Path]:
    """A synced file with `data` in the folder where `name` will stand; gone at the end unless it was renamed."""
    part = folder / f".{name}.{uuid.uuid4().hex[:12]}.part"
    try:
        with naming(folder / name):
            folder.mkdir(parents=True, exist_ok=True)
            with part.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        yield part
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def _name_exclusively(part: Path, path: Path) -> bool:
    """Give `part` its name unless the name is taken, in one step where the file system has hard links."""
    try:
        os.link(part, path)
    except FileExistsError:
        return False
    except OSError:
        try:
            path.open("xb").close()
        except FileExistsError:
            if not _stays_empty(path):
                return False
        os.replace(part, path)
    return True


def _stays_empty(path: Path) -> bool:
    """Whether the name was taken by a process that died before it gave the name its file, at once after."""
    deadline = time.monotonic() + PLACEHOLDER_SECONDS
    with contextlib.suppress(FileNotFoundError):
        while not path.stat().st_size:
            if time.monotonic() >= deadline:
                return True
            time.sleep(PLACEHOLDER_SECONDS / 20)
        return False
    return True


def _highest(folder: Path, pattern: str) -> int:
    before, after = re.split(r"\{[^}]*\}", pattern)
    number = re.compile(re.escape(before) + r"(\d+)" + re.escape(after))
    with naming(folder):
        names = os.listdir(folder) if folder.exists() else []
    return max((int(found.group(1)) for found in map(number.fullmatch, names) if found), default=-1)
