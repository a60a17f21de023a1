"""What the tests of jobs share: small plans in real run folders, and workers that need no model."""

from __future__ import annotations

import datetime
import functools
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Dict, List, Optional, Sequence

from jobs.config import read_settings
from jobs.submit.prepare import Prepared, prepare_run
from jobs.worker.worker import Picture
from ldm.errors import GenerationError
from ldm.inference.files import write_atomically
from ldm.inference.models import PROJECT_ROOT
from ldm.inference.spec import GenerationRequest

DAY = datetime.datetime(2024, 2, 23, 12, tzinfo=datetime.timezone.utc)
REHEARSAL = ["model=rehearsal", "steps=1"]


def write_prompts(folder: Path, count: int = 6) -> Path:
    path = folder / "prompts.txt"
    text = "".join(f"picture number {number}\n" for number in range(count))
    write_atomically(path, text.encode("utf-8"))  # of several processes, none may read half of another's
    return path


def prepare(folder: Path, *words: str, count: int = 6) -> Prepared:
    """A planned run of `count` prompts, two pictures a shard unless the words say otherwise."""
    settings = read_settings([*REHEARSAL, "images_per_shard=2", f"outputs={folder / 'outputs'}", *words])
    return prepare_run(write_prompts(folder, count), settings, DAY)


class FakeModel:
    """Makes bytes that follow from the request; counts what it made, and fails where it is told to."""

    def __init__(self, fail: Sequence[str] = (), flag: Sequence[str] = (), drop: Sequence[str] = ()) -> None:
        self.batches: List[List[str]] = []
        self._fail, self._flag, self._drop = fail, flag, drop

    def __call__(self, requests: Sequence[GenerationRequest]) -> List[Picture]:
        self.batches.append([request.prompt for request in requests])
        for request in requests:
            if request.prompt in self._fail:
                raise GenerationError(f"no picture of {request.prompt!r}")
        return [self._picture(request) for request in requests]

    def _picture(self, request: GenerationRequest) -> Picture:
        encode = None if request.prompt in self._drop else functools.partial(content, request)
        return Picture(encode=encode, flagged=request.prompt in (*self._flag, *self._drop), seconds=0.5)


def content(request: GenerationRequest) -> bytes:
    return f"the picture of {request.request_id}".encode()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def jobs(*words: str, cwd: Path, env: Optional[Dict[str, str]] = None) -> subprocess.CompletedProcess[str]:
    """Run `python -m jobs` as a user does, from any folder."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
    environ.update({"PYTHONPATH": str(PROJECT_ROOT), "OMP_NUM_THREADS": "1", **(env or {})})
    command = [sys.executable, "-m", "jobs", *words]
    return subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, timeout=300, check=False)
