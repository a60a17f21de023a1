"""What torch would compute with here, asked of a process of its own: on a login node torch may not start at all."""

from __future__ import annotations

import subprocess
import sys
from typing import Callable, List, Sequence

from jobs.doctor.verdict import Finding, ok, warning

TIMEOUT_S = 120  # a cold start of torch from a parallel file system takes a minute
ON_A_NODE = "on a node: srun ... python -m jobs kernels"

Run = Callable[[Sequence[str]], "subprocess.CompletedProcess[str]"]


def run_here(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """The command's output and exit status. Raises OSError or TimeoutExpired."""
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


def examine_torch(words: Sequence[str], run: Run = run_here) -> List[Finding]:
    """The lines of `jobs kernels` under these settings; or why there are none, which says nothing about the nodes."""
    try:
        done = run([sys.executable, "-m", "jobs", "kernels", *words])
    except subprocess.TimeoutExpired:
        return [warning(f"torch did not start here within {TIMEOUT_S} s; look {ON_A_NODE}")]
    except OSError as error:
        return [warning(f"{sys.executable} cannot be started: {error.strerror}")]
    if done.returncode == 0:
        return [ok(f"here: {line}") for line in done.stdout.splitlines()]
    said = done.stderr.strip().splitlines() or [f"it ended with status {done.returncode}"]
    return [warning(f"torch does not compute here ({said[-1]}); look {ON_A_NODE}")]
