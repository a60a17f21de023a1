"""Is everything here that a run needs? Looked at on the login node, without importing torch, which may fail there."""

from __future__ import annotations

import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Iterator, List, Optional

from jobs.cluster.slurm import RunCommand, run_command
from jobs.config import Settings
from jobs.doctor.doctor_slurm import examine_cluster
from jobs.doctor.verdict import Finding, Verdict
from jobs.reading import is_there
from jobs.spec import REHEARSAL, JobSpec
from jobs.submit.prepare import locate_model
from ldm.errors import SdbatchError
from ldm.inference.files import make_folder
from ldm.inference.models import MODELS

NEEDED = ("torch", "numpy", "Pillow", "einops", "omegaconf", "safetensors", "tokenizers", "tqdm")
OLDEST_PYTHON = (3, 8)


def examine(settings: Settings, run: RunCommand = run_command) -> List[Finding]:
    """Everything that can be told here about these settings."""
    findings = [
        *_python(),
        *_packages(),
        *_format(settings.spec),
        *_models(settings.spec),
        _outputs(Path(settings.spec.outputs).expanduser()),
    ]
    if settings.profile.scheduler == "slurm":
        findings += [_submitit(), *examine_cluster(settings, run)]
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


def _format(spec: JobSpec) -> Iterator[Finding]:
    """Pillow may have been built without WebP; it has the other formats always."""
    if spec.format == "webp" and _version("Pillow") is not None:
        from PIL import features

        if not features.check("webp"):
            yield Finding(Verdict.FAIL, "Pillow was built without WebP here; take format=png or jpeg")


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


def _version(package: str) -> Optional[str]:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
