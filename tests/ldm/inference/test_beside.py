"""What works beside something else takes no processor from it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ldm.inference.beside import give_way, processors

ROOT = Path(__file__).resolve().parents[3]
needs_linux = pytest.mark.skipif(
    not Path("/proc/self/task").exists(), reason="only Linux has threads with priorities and processors of their own"
)


def own_priority() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@needs_linux
def test_a_thread_that_gives_way_has_the_least_priority_and_no_other_has() -> None:
    before, found = own_priority(), []

    def beside() -> None:
        give_way()
        found.append(own_priority())

    thread = threading.Thread(target=beside)
    thread.start()
    thread.join()
    assert found == [19]
    assert own_priority() == before


@needs_linux
def test_a_process_counts_the_processors_that_it_was_given() -> None:
    to_one = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})"
    count = "from ldm.inference.beside import processors; print(processors())"
    assert subprocess.check_output((sys.executable, "-c", f"{to_one}; {count}"), cwd=ROOT, text=True) == "1\n"
    assert processors() == len(os.sched_getaffinity(0))
