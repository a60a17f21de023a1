"""From a prompts file and settings to a run folder: a new one, or the one where this very plan was begun before."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import itertools
import logging
import os
import platform
import re
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Dict, Iterable, Iterator, Optional, Sequence

from jobs.config import Settings, profile_path
from jobs.plan import PlanDigest, planned_images, to_line
from jobs.rundir import RunDir, RunInfo, RunModel, drafted, find_runs, plan_id_of, publish, write_info
from jobs.spec import HOW, REHEARSAL, REHEARSAL_SIZE, JobSpec, PlanTotals, template_request
from jobs.submit.sizing import images_per_shard
from jobs.submit.speed import known_speed
from ldm.errors import ConfigError, SdbatchError
from ldm.inference.digests import remembered_sha256, sha256_of
from ldm.inference.files import naming
from ldm.inference.models import (
    PROJECT_ROOT,
    ModelFiles,
    ModelShape,
    entry_named,
    find_file,
    find_files,
    read_shape,
)
from ldm.inference.prompts import count_prompts, read_prompts
from ldm.inference.safety_folder import find_weights
from ldm.inference.spec import SIZE_MULTIPLE, GenerationRequest, SamplerConfig
from ldm.inference.weightfile import naming_the_file, recognise
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
OPTIONS = {"ckpt": "checkpoint", "safety-checker": "safety_checker"}  # of the scripts, where a setting has another name
PACKAGES = ("torch", "numpy", "Pillow", "omegaconf", "submitit", "tokenizers", "transformers")


@dataclass(frozen=True)
class Prepared:
    """A run folder that has its plan. `resumed`: it was there before."""

    run: RunDir
    info: RunInfo
    resumed: bool


@dataclass(frozen=True)
class ModelParts:
    """Where a model's parts are, absolute but for those in `files`. `safety_checker`: None needs or wants none."""

    files: ModelFiles
    shape: ModelShape
    checkpoint: Path
    tokenizer: Path
    safety_checker: Optional[Path]


def prepare_run(
    prompts: Path, settings: Settings, now: Optional[datetime.datetime] = None, limit: Optional[int] = None
) -> Prepared:
    """Plan the prompts file, and find the run of this plan or make its folder. A failure leaves no folder behind.

    `limit`: only the first so many pictures, as for a probe.
    """
    now = now or datetime.datetime.now().astimezone()
    spec = settings.spec
    name = spec.name or name_from(prompts)
    model = find_model(spec)
    outputs = Path(spec.outputs).expanduser()
    with drafted(outputs, name) as draft:
        totals = _write_plan(draft / "plan.jsonl", _requests(prompts, spec, model, limit), model, settings,
                             _count(prompts, spec, limit))  # fmt: skip
        info = RunInfo(
            plan=totals,
            created=now.isoformat(timespec="seconds"),
            prompts=str(prompts.absolute()),
            prompts_sha256=sha256_of(prompts),
            model=model,
            settings=settings,
            versions=versions(),
            commit=commit(),
        )
        runs = find_runs(outputs, name)
        for run in runs:
            if plan_id_of(run) == totals.plan_id:
                return Prepared(run, run.info(), resumed=True)
        if runs:
            log.info("%s is of another plan%s: a new run begins", runs[0].path, _difference(runs[0], info))
        if info.commit and info.commit.endswith("-dirty"):
            log.warning("the checkout differs from commit %s, which is what run.yaml can name", info.commit[:12])
        write_info(draft, info)
        run = publish(draft, name, now.date())
        resumed = draft.exists()  # it was not renamed: the same command, given twice at once, was quicker elsewhere
        return Prepared(run, run.info() if resumed else info, resumed)


def warn_of_changed_profile(run: RunDir, info: RunInfo) -> None:
    """Say so where the profile's file was written after the run was planned, which goes on with what it said then."""
    name = info.settings.spec.cluster
    with contextlib.suppress(OSError, SdbatchError):
        path = profile_path(name)
        if path.stat().st_mtime > run.info_path.stat().st_mtime:
            log.warning("%s has changed since the run was planned, which goes on with what it said then; "
                        "cluster=%s takes what it says now", path, name)  # fmt: skip


def warn_of_changed_prompts(info: RunInfo) -> None:
    """Say so where the prompts file is no longer what was planned: the run goes on with its plan."""
    path = Path(info.prompts)
    with contextlib.suppress(OSError):
        if sha256_of(path) != info.prompts_sha256:
            log.warning(
                "%s has changed since it was planned; the run goes on with its plan, `submit` makes a new one", path
            )


def _difference(run: RunDir, info: RunInfo) -> str:
    """What makes a run's plan another than this one, as far as a few words can say it."""
    with contextlib.suppress(SdbatchError):
        before = run.info()
        if before.prompts == info.prompts and before.prompts_sha256 != info.prompts_sha256:
            return f" ({info.prompts} has changed since)"
        then, now = vars(before.settings.spec), vars(info.settings.spec)
        changed = [f"{key}={now[key]}" for key in now if then[key] != now[key] and key not in HOW]
        return f" ({', '.join(changed)})" if changed else ""
    return ""


def name_from(prompts: Path) -> str:
    """The name of a run after its prompts file, without what does not belong into a folder's or a job's name."""
    return re.sub(r"[^\w.+-]+", "-", prompts.stem).strip("-.+") or "prompts"


def find_model(spec: JobSpec) -> RunModel:
    """The model's files on this machine, digested. Raises ConfigError or WeightsError where one is missing."""
    if spec.model == REHEARSAL:
        return REHEARSAL_MODEL
    parts = locate_model(spec)
    checkpoint = parts.checkpoint
    with naming_the_file(checkpoint):
        size = checkpoint.stat().st_size
        log.info("taking the sha256 of %s (%.1f GiB)", checkpoint, size / 2**30)
        sha256 = remembered_sha256(checkpoint)
    return RunModel(
        name=parts.files.name,
        config=str(parts.files.config.absolute()),
        config_sha256=sha256_of(parts.files.config),
        checkpoint=str(checkpoint),
        checkpoint_sha256=sha256,
        checkpoint_bytes=size,
        clip=str(parts.tokenizer),
        clip_sha256=combined_sha256([parts.tokenizer / name for name in FILES]),
        safety_checker=None if parts.safety_checker is None else str(parts.safety_checker),
        guidance_scale=parts.files.guidance_scale or SamplerConfig.guidance_scale,
        size=parts.shape.size,
        size_multiple=parts.shape.size_multiple,
    )


def locate_model(spec: JobSpec) -> ModelParts:
    """The parts of the model on this machine, looked at but not read. ConfigError or WeightsError where one is none."""
    try:
        files = find_files(entry_named(spec.model), config=spec.config, checkpoint=spec.checkpoint)
        recognise(files.checkpoint)
        checkpoint = files.checkpoint.absolute()
        shape = read_shape(files.config)
        tokenizer = find_tokenizer(spec.clip, version=shape.tokenizer, checkpoint=checkpoint)
        return ModelParts(
            files=files,
            shape=shape,
            checkpoint=checkpoint,
            tokenizer=tokenizer.absolute(),
            safety_checker=_safety_checker(spec, files.safety_checker),
        )
    except SdbatchError as error:
        raise type(error)(_in_settings(str(error))) from error


def _in_settings(text: str) -> str:
    """Advice that names a script's option, in the words of a job: --ckpt FILE is checkpoint=FILE here."""
    return re.sub(r"--([\w-]+) ", lambda option: f"{OPTIONS.get(option.group(1), option.group(1))}=", text)


def combined_sha256(paths: Sequence[Path]) -> str:
    """One digest of several files, by their digests in order."""
    return hashlib.sha256("".join(sha256_of(path) for path in paths).encode("ascii")).hexdigest()


def _safety_checker(spec: JobSpec, usual: Optional[str]) -> Optional[Path]:
    """The folder of the safety model, None where the model needs none or the user asked for none."""
    wanted = spec.safety_checker or usual
    if spec.safety == "off" or not wanted:
        return None
    found = find_file([wanted], folder=True)
    if found is None:
        raise ConfigError(
            f"safety_checker must be a folder, found none at {wanted}; give safety_checker=FOLDER or say safety=off"
        )
    find_weights(found)
    return found.absolute()


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


def _write_plan(
    path: Path, requests: Iterable[GenerationRequest], model: RunModel, settings: Settings, count: int
) -> PlanTotals:
    """Write the plan of about `count` requests."""
    spec = settings.spec
    size = images_per_shard(spec, count, known_speed(spec, settings.profile, model))
    digest = PlanDigest(dependencies(spec, model), size)
    with naming(path), path.open("w", encoding="utf-8", newline="\n") as file:
        for image in planned_images(requests, size, spec.format):
            digest.add(image)
            file.write(to_line(image))
        file.flush()
        os.fsync(file.fileno())
    return digest.totals()


def _count(prompts: Path, spec: JobSpec, limit: Optional[int]) -> int:
    count = count_prompts(prompts) * spec.images_per_prompt
    return count if limit is None else min(count, limit)


def dependencies(spec: JobSpec, model: RunModel) -> Dict[str, str]:
    """What the pictures of a plan depend on beside their requests and files, for its id."""
    return {
        "config": model.config_sha256,
        "checkpoint": model.checkpoint_sha256,
        "clip": model.clip_sha256,
        "precision": spec.precision,
        "safety": spec.safety,
        "output": spec.output,
        "quality": "" if spec.format == "png" else str(spec.quality),
    }


def _requests(prompts: Path, spec: JobSpec, model: RunModel, limit: Optional[int]) -> Iterator[GenerationRequest]:
    template = template_request(spec, size=model.size, guidance_scale=model.guidance_scale)
    read = read_prompts(prompts, template, spec.images_per_prompt, size_multiple=model.size_multiple)
    return itertools.islice(read, limit)
