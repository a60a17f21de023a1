"""Is everything here that a run needs? Looked at on the login node, without importing torch, which may fail there."""

from __future__ import annotations

import enum
import os
import shutil
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Dict, Iterator, List, Optional

from jobs.config import Settings
from jobs.prepare import locate_model
from jobs.reading import is_there
from jobs.rehearsal import REHEARSAL
from jobs.slurm import RunCommand, run_command
from jobs.spec import JobSpec
from ldm.errors import SchedulerError, SdbatchError
from ldm.inference.files import make_folder
from ldm.inference.models import MODELS

NEEDED = ("torch", "numpy", "Pillow", "einops", "omegaconf", "safetensors", "tokenizers", "tqdm")
OLDEST_PYTHON = (3, 8)


class Verdict(enum.Enum):
    """How a check ended; only FAIL keeps a run from working."""

    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's."""

    verdict: Verdict
    text: str

    def __str__(self) -> str:
        return f"{self.verdict.value:4}  {self.text}"


def examine(settings: Settings, run: RunCommand = run_command) -> List[Finding]:
    """Everything that can be told here about these settings."""
    findings = [*_python(), *_packages(), *_models(settings.spec), _outputs(Path(settings.spec.outputs).expanduser())]
    if settings.profile.scheduler == "slurm":
        findings += [_submitit(), *_slurm(settings, run), *_modules(settings)]
    return findings


def _python() -> Iterator[Finding]:
    good = sys.version_info[:2] >= OLDEST_PYTHON
    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding(Verdict.OK if good else Verdict.FAIL, f"Python {version} at {sys.executable}, 3.8 or later is needed")


def _packages() -> Iterator[Finding]:
    for name in NEEDED:
        version = _version(name)
        if version is None:
            yield Finding(Verdict.FAIL, f"{name} is not installed for this Python")
        else:
            yield Finding(Verdict.OK, f"{name} {version}")


def _models(asked: JobSpec) -> Iterator[Finding]:
    """The model that was asked for, which must be whole, and the others that have a name."""
    yield from _model(asked, Verdict.FAIL)
    for name in MODELS:
        if name != asked.model:
            yield from _model(JobSpec(model=name), Verdict.WARN)


def _model(spec: JobSpec, otherwise: Verdict) -> Iterator[Finding]:
    """What a plan looks for, without the sha256 of anything; `otherwise` where something is missing."""
    if spec.model == REHEARSAL:
        yield Finding(Verdict.OK, f"model {REHEARSAL}: it has no weights")
        return
    try:
        parts = locate_model(spec)
    except SdbatchError as error:
        yield Finding(otherwise, f"model {spec.model}: {error}")
        return
    checked = f"safety checker {parts.safety_checker}" if parts.safety_checker else "no safety checker"
    yield Finding(Verdict.OK, f"model {spec.model}: {parts.checkpoint}, tokenizer {parts.tokenizer}, {checked}")


def _outputs(folder: Path) -> Finding:
    try:
        existed = is_there(folder)
        make_folder(folder)
    except SdbatchError as error:
        return Finding(Verdict.FAIL, str(error))
    if not existed:
        folder.rmdir()
    free = shutil.disk_usage(folder if existed else folder.absolute().parent).free
    return Finding(Verdict.OK, f"runs go to {folder.absolute()}, {free / 2**30:.0f} GiB free")


def _submitit() -> Finding:
    version = _version("submitit")
    if version is None:
        return Finding(Verdict.FAIL, "submitit is not installed; without it use `python -m jobs render`")
    if sys.version_info < (3, 10) and version == "1.5.4":
        return Finding(Verdict.FAIL, "submitit 1.5.4 fails on Python 3.8 and 3.9; pip install submitit==1.5.3")
    return Finding(Verdict.OK, f"submitit {version}")


def _slurm(settings: Settings, run: RunCommand) -> Iterator[Finding]:
    """Partition and cards as sinfo lists them; a hidden partition is listed by -a alone."""
    profile = settings.profile
    try:
        yield Finding(Verdict.OK, run(["sbatch", "--version"]).strip())
        nodes = [line.split() for line in run(["sinfo", "-a", "-h", "-o", "%R %G"]).splitlines()]
    except SchedulerError as error:
        yield Finding(Verdict.FAIL, str(error))
        return
    partitions: Dict[str, List[str]] = {}
    for name, *resources in nodes:
        partitions.setdefault(name, []).extend(resources)
    if profile.partition and profile.partition not in partitions:
        yield Finding(Verdict.FAIL, f"no partition {profile.partition!r}; there are {', '.join(sorted(partitions))}")
        return
    cards = ", ".join(partitions.get(profile.partition or "", []))
    if profile.gres and profile.partition:
        found = profile.gres.split(":")[0] in cards
        text = f"partition {profile.partition} has the resources {cards or 'none'}, asked for is {profile.gres}"
        yield Finding(Verdict.OK if found else Verdict.FAIL, text)


def _modules(settings: Settings) -> Iterator[Finding]:
    uses_modules = any(line.split()[:1] == ["module"] for line in settings.profile.setup)
    if uses_modules and "MODULESHOME" not in os.environ and "LMOD_CMD" not in os.environ:
        yield Finding(
            Verdict.WARN, "the setup uses `module`, which this shell does not know; the job looks for it itself"
        )


def _version(package: str) -> Optional[str]:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
