"""Slurm's commands as scripts of their own that take every job, run none, and note what they are told."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import List

import pytest

SBATCH = """
import sys
words = sys.argv[1:]
if words == ["--version"]:
    sys.exit(print("slurm 22.05.8"))
(here / "asked").open("a").write(" ".join(["sbatch", *words]) + "\\n")
taken = (here / "scripts").read_text().split("\\0")[:-1] if (here / "scripts").exists() else []
if "--test-only" in words:
    sys.exit(print("sbatch: Job 1 to start at 2026-01-02T03:04:05 using 1 processors", file=sys.stderr))
if (here / "most").exists() and len(taken) >= int((here / "most").read_text()):
    sys.exit("sbatch: error: QOSMaxSubmitJobPerUserLimit")
(here / "scripts").open("a").write(open(words[-1]).read() + "\\0")
number = 12 + len(taken)
print(number if "--parsable" in words else f"Submitted batch job {number}")
"""
SQUEUE = """
import sys
(here / "asked").open("a").write("squeue\\n")
if not (here / "queue").exists():
    sys.exit("slurm_load_jobs error: Unable to contact slurm controller")
print((here / "queue").read_text(), end="")
"""
SCANCEL = """
import sys
(here / "asked").open("a").write(" ".join(["scancel", *sys.argv[1:]]) + "\\n")
"""


class FakeSlurm:
    """The commands lie in `folder`, which is to be on the PATH."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        folder.mkdir()
        for name, text in {"sbatch": SBATCH, "squeue": SQUEUE, "scancel": SCANCEL, "srun": ""}.items():
            head = f"#!{sys.executable} -S\nimport pathlib\nhere = pathlib.Path({str(folder)!r})\n"
            (folder / name).write_text(head + text)
            (folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
        self.queue()

    def queue(self, *jobs: str) -> None:
        """Have squeue list these jobs, each as id:name or id:name:state."""
        rows = []
        for job in jobs:
            number, name, state = [*job.split(":"), "PENDING"][:3]
            rows.append(f"{number}|{number.partition('_')[0]}|{state}|None|1:00:00||{name}\n")
        (self._folder / "queue").write_text("".join(rows))

    def silence(self) -> None:
        """Have squeue fail, as where the controller does not answer."""
        (self._folder / "queue").unlink()

    def take_at_most(self, jobs: int) -> None:
        """Refuse every further one."""
        (self._folder / "most").write_text(str(jobs))

    @property
    def asked(self) -> List[str]:
        """What the commands were told, one line each."""
        return (self._folder / "asked").read_text().splitlines()

    @property
    def scripts(self) -> List[str]:
        """The scripts of the jobs that were taken, 12 and on."""
        path = self._folder / "scripts"
        return path.read_text().split("\0")[:-1] if path.exists() else []
