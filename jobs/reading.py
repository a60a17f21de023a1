"""Reading a run folder: what the file system refuses is one line, with the path that could not be read."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Iterator

from ldm.errors import RunError


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn a failure to read something at `path` into a RunError that names it."""
    try:
        yield
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}") from error


def is_there(path: Path) -> bool:
    """Whether there is something at `path`; RunError where one may not even look."""
    with reading(path):
        return path.exists()
