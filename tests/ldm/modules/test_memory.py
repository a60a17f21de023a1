"""Freed memory goes back to the system."""

from __future__ import annotations

import platform
import resource
from pathlib import Path

import pytest
import torch

from ldm.modules.memory import trim_memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries give freed memory back by themselves")
def test_memory_that_lies_freed_between_what_is_in_use_goes_back():
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20

    kept = []
    for _ in range(2):  # the first are mappings of their own; once some were freed, the others are pieces of the heap
        blocks = [torch.ones(2**18) for _ in range(128)]
        kept.extend(blocks[::8])
        del blocks
    before = resident()
    trim_memory()
    assert resident() < before - 50, "MiB, of the 112 that were freed last"
