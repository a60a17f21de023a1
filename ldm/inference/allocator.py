"""What the C library does with the memory that tensors on the CPU give back."""

from __future__ import annotations

import ctypes
import logging
from typing import Callable, Optional

log = logging.getLogger(__name__)

# Parameters of glibc's mallopt, and the highest values that it takes for them.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
NEVER, HIGHEST = 2**31 - 1, 2**30


def keep_freed_memory() -> bool:
    """Let the C library keep what is freed for the next tensor of the process; whether it will.

    As it comes, glibc returns blocks from 32 MiB on to the kernel, which hands out the next one page by page, each
    filled with zeros: for the large maps of a decoder that takes as long as computing them. Only worth it in a process
    that computes until it ends. False where the C library is another one.
    """
    mallopt = _mallopt()
    if mallopt is None:
        log.info("the C library has no mallopt: large tensors are given back to the kernel each time")
        return False
    return bool(mallopt(MMAP_THRESHOLD, HIGHEST) and mallopt(TRIM_THRESHOLD, NEVER))


def can_keep_freed_memory() -> bool:
    """Whether the C library can be told so."""
    return _mallopt() is not None


def _mallopt() -> Optional[Callable[[int, int], int]]:
    try:
        found: Callable[[int, int], int] = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return None
    return found
