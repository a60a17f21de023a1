"""How fast a card is: what the user says, what this run has measured, or an earlier one in the same folder."""

from __future__ import annotations

import contextlib
import os
import re
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional

from jobs.attendance import read_attendances
from jobs.config import Settings
from jobs.reading import is_there, reading
from jobs.records import read_records, read_summary
from jobs.rundir import RunDir, RunInfo, RunModel
from jobs.spec import ClusterProfile, JobSpec
from jobs.submit.sizing import Speed
from ldm.errors import SdbatchError

SHARDS_READ, SHARDS_LOOKED_AT = 4, 64  # of a run
RUNS_LOOKED_AT = 24  # of a folder, the newest
CACHED_STEP = 0.07  # of the work of a whole one, for SD v1 at 256 px
DATED = re.compile(r".*-(\d{8})(?:-(\d+))?")


@dataclass(frozen=True)
class Kind:
    """A kind of card, as far as settings say it."""

    scheduler: str
    partition: Optional[str]
    gres: Optional[str]
    device: str


def kind_of(settings: Settings) -> Kind:
    profile = settings.profile
    return Kind(profile.scheduler, profile.partition, profile.gres, settings.spec.device)


def known_speed(
    spec: JobSpec, profile: ClusterProfile, model: RunModel, run: Optional[RunDir] = None
) -> Optional[Speed]:
    """The speed of one card at this job's pictures; None where nobody knows. `run`: measured here first, if at all."""
    kind = kind_of(Settings(spec, profile))
    found = None if run is None else measured(run, kind)
    found = found or _from_earlier(spec, kind, model)
    if spec.seconds_per_image is not None:
        return Speed(spec.seconds_per_image, found.loading if found else 0.0, "as seconds_per_image says")
    return found


def measured(run: RunDir, kind: Kind) -> Optional[Speed]:
    """What a run's records say of one kind of card: the median picture, so that a first one, for which kernels are
    built, counts little.
    """
    info = run.info()
    kinds = _kinds(run)
    usual = kind_of(info.settings)  # of jobs that no submission tells of, such as those of a rendered file

    def counts(job: str) -> bool:
        return kinds.get(job.partition("_")[0], usual) == kind

    seconds: List[float] = []
    read = 0
    for shard in range(min(info.plan.shards, SHARDS_LOOKED_AT)):
        summary = read_summary(run.records_path(shard))
        if summary is not None and any(session.made and counts(_job(session.worker)) for session in summary.sessions):
            images = read_records(run.records_path(shard)).images.values()
            seconds += [image.seconds for image in images if image.seconds > 0 and counts(_job(image.worker))]
            read += 1
        if read == SHARDS_READ:
            break
    if not seconds:
        return None
    there = [each for each in read_attendances(run.workers) if counts(each.job)]
    loading = [each.loading for each in there if each.loading is not None]
    return Speed(
        statistics.median_low(seconds), statistics.median(loading) if loading else 0.0, f"as measured in {run.path}"
    )


def _job(worker: str) -> str:
    """The job in the name of a worker, such as 12_0 in dcu1/12_0/9876; "" outside Slurm."""
    words = worker.split("/")
    return words[1] if len(words) == 3 else ""


def _kinds(run: RunDir) -> Dict[str, Kind]:
    """The kind of card that each submitted job has worked on; "" stands for the latest processes outside Slurm."""
    found: Dict[str, Kind] = {}
    for submission in run.submissions():
        if "kind" in submission:
            for task in submission["tasks"]:
                job = "" if submission["scheduler"] == "local" else task["job"].partition("_")[0]
                found[job] = Kind(**submission["kind"])
    return found


def _from_earlier(spec: JobSpec, kind: Kind, model: RunModel) -> Optional[Speed]:
    """The newest run of this folder with the same model on the same kind of card, at this job's steps and size."""
    outputs = Path(spec.outputs).expanduser()
    if not is_there(outputs):
        return None
    for path in _newest(outputs):
        with contextlib.suppress(SdbatchError):  # not a run, or one of another version
            info = RunDir(path).info()
            speed = measured(RunDir(path), kind) if _is_alike(info, spec, model) else None
            if speed is not None:
                scale = _work(spec, model) / _work(info.settings.spec, info.model)
                return Speed(speed.seconds_per_image * scale, speed.loading, speed.source)
    return None


def _newest(outputs: Path) -> List[Path]:
    """The latest runs of a folder, newest first: by their day, then by when they were planned, then by their number."""
    with reading(outputs):
        matches = [match for match in map(DATED.fullmatch, os.listdir(outputs)) if match]
    dated = [(match[1], int(match[2] or 1), match[0]) for match in matches]
    latest = sorted(dated, reverse=True)[:RUNS_LOOKED_AT]
    planned = [(day, _written(outputs / name / "run.yaml"), number, name) for day, number, name in latest]
    return [outputs / name for _, _, _, name in sorted(planned, reverse=True)]


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0  # not a run


def _is_alike(info: RunInfo, spec: JobSpec, model: RunModel) -> bool:
    then = (info.model.name, info.model.checkpoint_sha256, info.settings.spec.precision)
    return then == (model.name, model.checkpoint_sha256, spec.precision)


def _work(spec: JobSpec, model: RunModel) -> float:
    """What a picture costs in comparison: passes through the network, and their size."""
    height, width = spec.height or model.size, spec.width or model.size
    scale = model.guidance_scale if spec.guidance_scale is None else spec.guidance_scale
    passes = 1.0 if scale == 1.0 else 1.0 + spec.guidance_until
    whole = 1 / spec.cache_interval
    return spec.steps * passes * (whole + (1 - whole) * CACHED_STEP) * height * width
