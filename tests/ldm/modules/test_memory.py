"""Freed memory goes back to the system, and what stays is not looked through in vain."""

from __future__ import annotations

import contextlib
import gc
import platform
import resource
import weakref
from pathlib import Path

import pytest
import torch

from ldm.modules.memory import nothing_to_collect, trim_memory


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


@pytest.mark.parametrize("enabled", [True, False])
def test_cycles_are_looked_for_afterwards_as_before(enabled):
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        with contextlib.suppress(ValueError), nothing_to_collect():
            assert not gc.isenabled()
            raise ValueError
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if before else gc.disable)()


def test_what_was_there_at_the_end_of_loading_is_not_gone_through_again():
    gc.unfreeze()
    try:
        with nothing_to_collect():
            loaded = [[number] for number in range(1000)]
        assert gc.get_freeze_count() > 1000
        assert not any(each is loaded for each in gc.get_objects())
        weak = weakref.ref(Node())
        gc.collect()
        assert weak() is None, "cycles made later are freed"
    finally:
        gc.unfreeze()


class Node:
    """A cycle."""

    def __init__(self) -> None:
        self.own = self
