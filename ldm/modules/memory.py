"""What the C library does with memory that is not needed any more."""

from __future__ import annotations

import ctypes


def trim_memory() -> None:
    """Have the C library give what was freed in the machine's memory back to the system, where it can (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
