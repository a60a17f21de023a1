"""How fast a card is: what the user says, what this run has measured, or an earlier one in the same folder."""

from __future__ import annotations

import contextlib
import os
import re
import statistics
from pathlib import Path
from typing import List, Optional

from jobs.attendance import read_attendances
from jobs.reading import is_there, reading
from jobs.records import read_records, read_summary
from jobs.rundir import RunDir, RunInfo, RunModel
from jobs.sizing import Speed
from jobs.spec import ClusterProfile, JobSpec
from ldm.errors import SdbatchError

SHARDS_READ, SHARDS_LOOKED_AT = 4, 64  # of a run
RUNS_LOOKED_AT = 24  # of a folder, the newest
DATED = re.compile(r".*-(\d{8})(?:-\d+)?")


def known_speed(
    spec: JobSpec, profile: ClusterProfile, model: RunModel, run: Optional[RunDir] = None
) -> Optional[Speed]:
    """The speed of one card at this job's pictures; None where nobody knows. `run`: measured here first, if at all."""
    found = None if run is None else measured(run)
    found = found or _from_earlier(spec, profile, model)
    if spec.seconds_per_image is not None:
        return Speed(spec.seconds_per_image, found.loading if found else 0.0, "as seconds_per_image says")
    return found


def measured(run: RunDir) -> Optional[Speed]:
    """What a run's records say: the median picture, so that a first one, for which kernels are built, counts little."""
    info = run.info()
    seconds: List[float] = []
    read = 0
    for shard in range(min(info.plan.shards, SHARDS_LOOKED_AT)):
        summary = read_summary(run.records_path(shard))
        if summary is not None and summary.made:
            seconds += [record.seconds for record in read_records(run.records_path(shard)).images.values()]
            read += 1
        if read == SHARDS_READ:
            break
    seconds = [each for each in seconds if each > 0]
    if not seconds:
        return None
    loading = [each.loading for each in read_attendances(run.workers) if each.loading is not None]
    return Speed(
        statistics.median_low(seconds), statistics.median(loading) if loading else 0.0, f"as measured in {run.path}"
    )


def _from_earlier(spec: JobSpec, profile: ClusterProfile, model: RunModel) -> Optional[Speed]:
    """The newest run of this folder with the same model on the same kind of card, at this job's steps and size."""
    outputs = Path(spec.outputs).expanduser()
    if not is_there(outputs):
        return None
    with reading(outputs):
        names = [entry for entry in os.listdir(outputs) if DATED.fullmatch(entry)]
    newest = sorted(names, key=lambda name: (DATED.fullmatch(name) or [""])[1], reverse=True)[:RUNS_LOOKED_AT]
    for name in newest:
        with contextlib.suppress(SdbatchError):  # not a run, or one of another version
            run = RunDir(outputs / name)
            info = run.info()
            speed = measured(run) if _is_alike(info, spec, profile, model) else None
            if speed is not None:
                scale = _work(spec, model) / _work(info.settings.spec, info.model)
                return Speed(speed.seconds_per_image * scale, speed.loading, speed.source)
    return None


def _is_alike(info: RunInfo, spec: JobSpec, profile: ClusterProfile, model: RunModel) -> bool:
    then = info.settings
    return (
        (info.model.name, info.model.checkpoint_sha256) == (model.name, model.checkpoint_sha256)
        and (then.spec.precision, then.spec.device) == (spec.precision, spec.device)
        and (then.profile.scheduler, then.profile.partition, then.profile.gres)
        == (profile.scheduler, profile.partition, profile.gres)
    )


def _work(spec: JobSpec, model: RunModel) -> float:
    """What a picture costs in comparison: passes through the network, and their size."""
    height, width = spec.height or model.size, spec.width or model.size
    scale = model.guidance_scale if spec.guidance_scale is None else spec.guidance_scale
    return float(spec.steps * (1 if scale == 1.0 else 2) * height * width)
