"""What the C library and the interpreter do with memory that is not needed any more."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from typing import Iterator


def trim_memory() -> None:
    """Have the C library give what was freed in the machine's memory back to the system, where it can (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@contextlib.contextmanager
def nothing_to_collect() -> Iterator[None]:
    """For imports and loading: the interpreter does not look for cycles to be freed inside, and of what is there then
    never again.

    To import torch and build a model makes 300,000 objects that stay. Each time that there are a quarter more the
    interpreter goes through all of them, and once when it ends: a fifth of the time that it takes to be ready.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if enabled:
            gc.enable()
