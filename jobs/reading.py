"""Reading a run folder, whose files others replace meanwhile: patient where that helps, and one line where it does not.

On a shared file system (NFS, Lustre) a file or a folder that another node has just replaced may be stale for a moment.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from pathlib import Path
from typing import Callable, Iterator, List, Optional, TypeVar

from ldm.errors import RunError

Read = TypeVar("Read")

PASSING = (errno.ESTALE, errno.EAGAIN, errno.EINTR)
TRIES = 4
TRY_AGAIN_SECONDS = 0.2


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn a failure to read something at `path` into a RunError that names it."""
    try:
        yield
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}") from error


def patiently(path: Path, read: Callable[[Path], Read]) -> Read:
    """What `read` gives of `path`, from the beginning again where something came between that may pass. Or RunError."""
    with reading(path):
        return _again(path, read)


def if_there(path: Path, read: Callable[[Path], Read]) -> Optional[Read]:
    """As `patiently`, but None if there is nothing at `path`."""
    with reading(path), contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return _again(path, read)
    return None


def is_there(path: Path) -> bool:
    """Whether there is something at `path`; RunError where one may not even look."""
    return patiently(path, lambda path: path.exists())


def read_bytes(path: Path) -> Optional[bytes]:
    """A whole file; None if there is none."""
    return if_there(path, lambda path: path.read_bytes())


def read_end(path: Path, limit: int) -> Optional[bytes]:
    """The last bytes of a file, `limit` at most; None if there is none."""

    def end(path: Path) -> bytes:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - limit))  # of this file: its name may be another's by now
            return file.read()

    return if_there(path, end)


def names_in(folder: Path) -> List[str]:
    """The names in a folder, without an order; none if there is no folder."""
    return if_there(folder, os.listdir) or []


def _again(path: Path, read: Callable[[Path], Read]) -> Read:
    for further in range(TRIES - 1, -1, -1):
        try:
            return read(path)
        except OSError as error:
            if error.errno not in PASSING or not further:
                raise
            time.sleep(TRY_AGAIN_SECONDS)
    raise AssertionError("the last try returns or raises")
