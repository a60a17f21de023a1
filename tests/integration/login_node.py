"""What a user types on the login node of a cluster, and what is found in a run folder afterwards.

A run is judged from its files with nothing of the toolkit's own code, so that the two cannot be wrong together.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Sequence

from tests.slurm_lab.cluster import SlurmLab

PROJECT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Submission:
    """A job array that works on a run, and what was printed when it was submitted."""

    job: str
    run: Path
    said: str


@dataclass(frozen=True)
class LoginNode:
    """A shell on a cluster's login node; runs are made in `folder`."""

    lab: SlurmLab
    folder: Path

    def prompts(self, lines: Sequence[str], name: str = "prompts.txt") -> Path:
        """A prompts file with these lines."""
        path = self.folder / name
        path.write_text("".join(f"{line}\n" for line in lines))
        return path

    def jobs(self, *words: str, status: int = 0, before: Sequence[str] = ()) -> str:
        """Type `python -m jobs ...`, behind `before`, and check its exit status; all that it prints, stdout first."""
        done = self.lab.run(*before, sys.executable, "-m", "jobs", *words, cwd=PROJECT)
        assert done.returncode == status, f"status {done.returncode} of {shlex.join(words)}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def submit(self, prompts: Path, *settings: str, before: Sequence[str] = ()) -> Submission:
        """Type `python -m jobs submit`."""
        said = self.jobs("submit", str(prompts), f"outputs={self.folder}", *settings, before=before)
        submitted, status = said.splitlines()[:2]
        return Submission(job=submitted.split()[-1], run=Path(shlex.split(status)[-1]), said=said)

    def render(self, prompts: Path, *settings: str) -> Path:
        """Type `python -m jobs render ... > job.sbatch`."""
        done = self.lab.output(
            sys.executable, "-m", "jobs", "render", str(prompts), f"outputs={self.folder}", *settings, cwd=PROJECT
        )
        file = self.folder / "job.sbatch"
        file.write_text(done)
        return file

    def job_numbers(self, run: Path) -> List[str]:
        """The jobs that were submitted for a run, arrays by their number, in that order."""
        lines = (run / "submissions.jsonl").read_text().splitlines()
        return [json.loads(line)["tasks"][0]["job"].partition("_")[0] for line in lines]

    def sbatch(self, file: Path) -> str:
        """Type `sbatch job.sbatch`; the job's id."""
        return self.lab.output("sbatch", "--parsable", str(file), cwd=self.folder).strip()


def pictures(run: Path) -> Dict[str, bytes]:
    """Every file below samples, by its path."""
    files = [path for path in (run / "samples").rglob("*") if path.is_file()]
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in files}


def picture_count(run: Path) -> int:
    """How many pictures have files, while some are being made."""
    return len(list((run / "samples").glob("*/[!.]*")))


def records(run: Path) -> List[Dict[str, Any]]:
    """Every record of a picture, in the order of the files and lines."""
    lines = [line for path in sorted((run / "records").glob("*.jsonl")) for line in path.read_text().splitlines()]
    return [record for record in map(json.loads, lines) if "request_id" in record]


def faults(run: Path, planned: int) -> List[str]:
    """What keeps the run from being whole: each planned picture there once, whole, with one true record."""
    found, wanted = pictures(run), {f"samples/{index // 1000:03}/{index:06}.png" for index in range(planned)}
    noted = records(run)
    problems = [f"{name} is missing" for name in sorted(wanted - found.keys())]
    problems += [f"{name} is not planned" for name in sorted(found.keys() - wanted)]
    problems += [f"{name} is cut" for name, data in found.items() if not data.endswith(b"IEND\xaeB`\x82")]
    if sorted(record["index"] for record in noted) != list(range(planned)):
        problems.append(f"the records are of {[record['index'] for record in noted]}")
    for record in noted:
        if hashlib.sha256(found.get(record["file"], b"")).hexdigest() != record["sha256"]:
            problems.append(f"{record['file']} is not what its record says")
    return problems


def leftovers(run: Path) -> List[str]:
    """Files that were begun and not finished, hidden ones too."""
    return [str(path) for path in run.rglob("*") if path.name.endswith(".part")]


def log_text(run: Path) -> str:
    """All that the jobs of a run have said."""
    logs = sorted(path for path in (run / "logs").rglob("*") if path.suffix in (".log", ".out", ".err"))
    return "\n".join(path.read_text(errors="replace") for path in logs)
