"""Files that are whole or absent: the one way in which a result reaches the disk.

Written beside the target, synced, then given its name in one step. Needs neither torch nor Pillow, so that the control
plane may use it too. Every failure is an `OutputError` that names the file; nothing half-written stays behind, but for
the part of a process that was killed: `sweep` removes those, at any time, for a writer whose part it took writes again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import time
import uuid
from pathlib import Path
from typing import BinaryIO, Callable, Container, Iterator, Optional, TypeVar

from ldm.errors import OutputError

Named = TypeVar("Named")
Fill = Callable[[BinaryIO], object]  # writes the content of a file, all of it

ADVICE = {
    errno.ENOSPC: "free some space or choose another folder",
    errno.EDQUOT: "the quota is used up: free some space or choose another folder",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.EROFS: "choose a folder that you may write to",
    errno.ENOTDIR: "a file stands where a folder must be: choose another name",
    errno.EEXIST: "a file stands where a folder must be: choose another name",
}

MOUNTS = Path("/proc/self/mounts")
PART = re.compile(r"\.(.*)\.[0-9a-f]{12}\.part")
# What may pass: the part was swept, a server of a shared file system was replaced.
PASSING = (errno.ENOENT, errno.ESTALE)
TRIES = 4
TRY_AGAIN_SECONDS = 0.2

# Without hard links a name is taken by an empty file first: one that is as old has lost its writer.
PLACEHOLDER_SECONDS = 2.0


def file_system_of(path: Path, mounts: Path = MOUNTS) -> str:
    """The kind of the file system that a path lies on, such as nfs4; "" where it cannot be told.

    By the table of mounts, `device place type ...` a line: the innermost that holds the path, and of several on one
    place the last, which lies over those before it.
    """
    try:
        lines = [line.split() for line in mounts.read_text(encoding="utf-8", errors="replace").splitlines()]
    except OSError:
        return ""
    real = f"{os.path.realpath(path)}/"
    holding = [
        (len(place), number, kind)
        for number, (place, kind) in enumerate((_unescaped(words[1]), words[2]) for words in lines if len(words) > 2)
        if real.startswith(f"{place.rstrip('/')}/")
    ]
    return max(holding)[2] if holding else ""


def _unescaped(place: str) -> str:
    """A path as the kernel writes it into the table: blanks, line ends and backslashes as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found.group(1), 8)), place)


def write_atomically(path: Path, data: bytes) -> None:
    """Readers see no file or the whole file, never a part, even after a node has crashed."""
    _write(path, lambda file: file.write(data), os.replace)


def write_once(path: Path, data: bytes) -> bool:
    """As `write_atomically`, but a file that is there already stays. Says whether this call wrote it."""
    return write_once_from(path, lambda file: file.write(data))


def write_once_from(path: Path, fill: Fill) -> bool:
    """As `write_once`, of what `fill` writes into the file, piece by piece. It may be asked to do so several times.

    What `fill` raises comes out as it is, unless it is an OSError; then no file is left.
    """
    return _write(path, fill, _name_exclusively)


def sweep(folder: Path, names: Optional[Container[str]] = None, older: float = 0.0) -> int:
    """Remove what was begun in `folder` of files with these names, of all where None, and never finished; how many.

    What cannot be removed stays: no work depends on it. `older`: only what nobody has written to for so many seconds,
    for names that many write at once: each of them would take the parts of all others.
    """
    swept = 0
    with contextlib.suppress(OSError):
        for entry in os.listdir(folder):
            found = PART.fullmatch(entry)
            if found and (names is None or found.group(1) in names):
                with contextlib.suppress(OSError):
                    if older and time.time() - os.stat(folder / entry).st_mtime <= older:
                        continue
                    os.unlink(folder / entry)
                    swept += 1
    return swept


def _write(path: Path, fill: Fill, name: Callable[[Path, Path], Named]) -> Named:
    """Write a part, and have it named; all over again where something came between that may pass."""
    with naming(path):
        for further in range(TRIES - 1, -1, -1):
            try:
                with _written_beside(path.parent, path.name, fill) as part:
                    return name(part, path)
            except OSError as error:
                if error.errno not in PASSING or not further:
                    raise
                time.sleep(TRY_AGAIN_SECONDS)
        raise AssertionError("the last try returns or raises")


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
        while True:
            path = self.folder / self.pattern.format(self.next_number)
            self.next_number += 1
            if write_once(path, data):
                return path


def make_folder(folder: Path) -> Path:
    """Create `folder` and prove that it can be written to, before the long work whose results go there."""
    with naming(folder), _written_beside(folder, "", lambda file: file.write(b"\0")):
        return folder


@contextlib.contextmanager
def _written_beside(folder: Path, name: str, fill: Fill) -> Iterator[Path]:
    """A synced file that `fill` wrote, in the folder where `name` will stand; gone at the end unless it was renamed."""
    part = folder / f".{name}.{uuid.uuid4().hex[:12]}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with part.open("xb") as file:
            fill(file)
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
    except OSError as error:
        if error.errno in PASSING:
            raise
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
