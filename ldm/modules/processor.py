"""What the processor says of itself. Kernels are chosen by it, never by timing: equal nodes make equal pictures."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import FrozenSet

CPUINFO = Path("/proc/cpuinfo")
AMX_BF16 = "amx_bf16"  # matrix units for bfloat16
BF16_FLAGS = frozenset({"avx512_bf16", AMX_BF16})


@functools.lru_cache(maxsize=None)
def processor_flags() -> FrozenSet[str]:
    """The instruction sets that Linux lists; none where it lists none."""
    return frozenset(cpuinfo("flags").split())


def cpuinfo(key: str) -> str:
    """The first value of a key in /proc/cpuinfo, or nothing."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    values = (value for name, _, value in (line.partition(":") for line in lines) if name.strip() == key)
    return next(values, "").strip()
