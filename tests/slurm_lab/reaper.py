"""Runs a command and becomes the parent of all that it leaves behind, as process 1 is otherwise.

    python reaper.py COMMAND ...    prints the command's exit status when it ends; ends itself after the last orphan

Where process 1 reaps late, as in many containers, a job's dead processes stay for a second as zombies. Slurm waits
until they are gone, so that a job with an srun in it would last three seconds longer than its script.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from typing import Sequence

PR_SET_CHILD_SUBREAPER = 36  # prctl(2)


def main(command: Sequence[str]) -> None:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # The daemons inherit standard error, a file, but not standard output, a pipe whose reader waits for its end.
    first = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr)
    while True:
        try:
            pid, status = os.wait()
        except ChildProcessError:
            return
        if pid == first.pid:
            first.returncode = status
            sys.stdout.write(f"{status}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
