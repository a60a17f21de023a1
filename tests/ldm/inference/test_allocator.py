"""Freed memory stays with the process: seen by the pages that the kernel hands out, in a process of its own."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from ldm.inference import allocator

LOOK = """
import resource, sys, torch
from ldm.inference.allocator import keep_freed_memory

def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16 * 2**20)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if sys.argv[1] == "keep":
    assert keep_freed_memory()
pages()
print(pages())
"""


def pages_of_a_second_tensor(word: str) -> int:
    return int(subprocess.run([sys.executable, "-c", LOOK, word], check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library has no mallopt")
def test_a_second_large_tensor_takes_the_memory_of_the_first():
    assert pages_of_a_second_tensor("keep") < 100
    assert pages_of_a_second_tensor("return") > 100, "the kernel keeps freed memory by itself here: drop the module"


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: object())
    assert not allocator.keep_freed_memory()
