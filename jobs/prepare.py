"""From a prompts file and settings to a run folder: a new one, or the one where this very plan was begun before."""

from __future__ import annotations

import datetime
import hashlib
import logging
import os
import platform
import re
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Dict, Iterator, Optional, Sequence

from jobs.config import Settings, read_yaml
from jobs.plan import PlanDigest, planned_images, to_line
from jobs.rehearsal import REHEARSAL, REHEARSAL_SIZE
from jobs.rundir import RunDir, RunInfo, RunModel, drafted, find_runs, plan_id_of, publish, write_info
from jobs.spec import JobSpec, PlanTotals, template_request
from ldm.errors import ConfigError, SdbatchError
from ldm.inference.files import naming, sha256_of
from ldm.inference.models import PROJECT_ROOT, entry_named, find_file, find_files, read_shape
from ldm.inference.prompts import read_prompts
from ldm.inference.spec import SIZE_MULTIPLE, GenerationRequest, SamplerConfig
from ldm.inference.weightfile import recognise
from ldm.modules.encoders.tokenizer import FILES, find_tokenizer

log = logging.getLogger(__name__)

REHEARSAL_MODEL = RunModel(
    name=REHEARSAL,
    config="",
    config_sha256="",
    checkpoint="",
    checkpoint_sha256="",
    checkpoint_bytes=0,
    clip=None,
    clip_sha256="",
    safety_checker=None,
    guidance_scale=SamplerConfig.guidance_scale,
    size=REHEARSAL_SIZE,
    size_multiple=SIZE_MULTIPLE,
)
OPTIONS = {"ckpt": "checkpoint"}  # of the scripts, where a setting has another name
PACKAGES = ("torch", "numpy", "Pillow", "omegaconf", "submitit", "tokenizers", "transformers")


@dataclass(frozen=True)
class Prepared:
    """A run folder that has its plan. `resumed`: it was there before."""

    run: RunDir
    info: RunInfo
    resumed: bool


def prepare_run(prompts: Path, settings: Settings, now: Optional[datetime.datetime] = None) -> Prepared:
    """Plan the prompts file, and find the run of this plan or make its folder. A failure leaves no folder behind."""
    now = now or datetime.datetime.now().astimezone()
    spec = settings.spec
    name = spec.name or name_from(prompts)
    model = find_model(spec)
    outputs = Path(spec.outputs).expanduser()
    with drafted(outputs, name) as draft:
        totals = _write_plan(draft / "plan.jsonl", prompts, spec, model)
        info = RunInfo(
            plan=totals,
            created=now.isoformat(timespec="seconds"),
            prompts=str(prompts.absolute()),
            model=model,
            settings=settings,
            versions=versions(),
            commit=commit(),
        )
        for run in find_runs(outputs, name):
            if plan_id_of(run) == totals.plan_id:
                return Prepared(run, run.info(), resumed=True)
        write_info(draft, info)
        run = publish(draft, name, now.date())
        resumed = draft.exists()  # it was not renamed: the same command, given twice at once, was quicker elsewhere
        return Prepared(run, run.info() if resumed else info, resumed)


def name_from(prompts: Path) -> str:
    """The name of a run after its prompts file, without what does not belong into a folder's or a job's name."""
    return re.sub(r"[^\w.+-]+", "-", prompts.stem).strip("-.+") or "prompts"


def find_model(spec: JobSpec) -> RunModel:
    """The model's files on this machine, digested. Raises ConfigError or WeightsError where one is missing."""
    if spec.model == REHEARSAL:
        return REHEARSAL_MODEL
    try:
        return _found_model(spec)
    except SdbatchError as error:
        raise type(error)(_in_settings(str(error))) from error


def _found_model(spec: JobSpec) -> RunModel:
    files = find_files(entry_named(spec.model), config=spec.config, checkpoint=spec.checkpoint)
    recognise(files.checkpoint)
    shape = read_shape(files.config)
    checkpoint = files.checkpoint.absolute()
    tokenizer = find_tokenizer(spec.clip, version=_tokenizer_version(files.config), checkpoint=checkpoint).absolute()
    log.info("reading %s (%.1f GiB) for its sha256", checkpoint, checkpoint.stat().st_size / 2**30)
    return RunModel(
        name=files.name,
        config=str(files.config.absolute()),
        config_sha256=sha256_of(files.config),
        checkpoint=str(checkpoint),
        checkpoint_sha256=sha256_of(checkpoint),
        checkpoint_bytes=checkpoint.stat().st_size,
        clip=str(tokenizer),
        clip_sha256=combined_sha256([tokenizer / name for name in FILES]),
        safety_checker=_safety_checker(spec, files.safety_checker),
        guidance_scale=files.guidance_scale or SamplerConfig.guidance_scale,
        size=shape.size,
        size_multiple=shape.size_multiple,
    )


def _in_settings(text: str) -> str:
    """Advice that names a script's option, in the words of a job: --ckpt FILE is checkpoint=FILE here."""
    return re.sub(r"--(\w+) ", lambda option: f"{OPTIONS.get(option.group(1), option.group(1))}=", text)


def combined_sha256(paths: Sequence[Path]) -> str:
    """One digest of several files, by their digests in order."""
    return hashlib.sha256("".join(sha256_of(path) for path in paths).encode("ascii")).hexdigest()


def _tokenizer_version(config: Path) -> Optional[str]:
    """`version` of the text encoder in a model's YAML, a folder that some people set there."""
    node: Any = read_yaml(config)
    for key in ("model", "params", "cond_stage_config", "params", "version"):
        node = node.get(key) if isinstance(node, dict) else None
    return None if node is None else str(node)


def _safety_checker(spec: JobSpec, usual: Optional[str]) -> Optional[str]:
    """The folder of the safety model, None where the model needs none or the user asked for none."""
    if spec.safety == "off":
        return None
    return _folder("safety_checker", spec.safety_checker or usual, "or say safety=off")


def _folder(key: str, value: Optional[str], otherwise: str = "") -> Optional[str]:
    found = find_file([value], folder=True) if value else None
    if value and found is None:
        raise ConfigError(f"{key} must be a folder, found none at {value}; give {key}=FOLDER {otherwise}".rstrip())
    return str(found.absolute()) if found else None


def versions() -> Dict[str, Optional[str]]:
    """Python's and the packages' versions, None for one that is not installed; nothing is imported."""
    found: Dict[str, Optional[str]] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def commit() -> Optional[str]:
    """The commit of the project's checkout, with -dirty if files differ from it; None where git cannot say."""
    head = _git("rev-parse", "HEAD")
    return head and head + ("-dirty" if _git("status", "--porcelain", "--untracked-files=no") else "")


def _git(*words: str) -> Optional[str]:
    command = ["git", "-C", str(PROJECT_ROOT), *words]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", "replace").strip()


def _write_plan(path: Path, prompts: Path, spec: JobSpec, model: RunModel) -> PlanTotals:
    digest = PlanDigest(
        {
            "config": model.config_sha256,
            "checkpoint": model.checkpoint_sha256,
            "clip": model.clip_sha256,
            "precision": spec.precision,
            "safety": spec.safety,
        }
    )
    images = planned_images(_requests(prompts, spec, model), spec.images_per_shard)
    with naming(path), path.open("w", encoding="utf-8", newline="\n") as file:
        for image in images:
            digest.add(image)
            file.write(to_line(image))
        file.flush()
        os.fsync(file.fileno())
    return digest.totals()


def _requests(prompts: Path, spec: JobSpec, model: RunModel) -> Iterator[GenerationRequest]:
    template = template_request(spec, size=model.size, guidance_scale=model.guidance_scale)
    return read_prompts(prompts, template, spec.images_per_prompt, size_multiple=model.size_multiple)
