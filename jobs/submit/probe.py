"""A few pictures of a prompts file, made as all of them will be, so that the whole can be sized and priced.

Then the card tries how many pictures at once are quickest, and how many it has memory for: `batch_size` is part of the
plan, which is made where no card is.
"""

from __future__ import annotations

import dataclasses
import logging
import re
import shlex
import time
from pathlib import Path
from typing import Callable, Iterator, List

from jobs.cluster.queue import live_jobs
from jobs.config import Settings
from jobs.rundir import RunDir, RunInfo
from jobs.spec import REHEARSAL
from jobs.submit.launch import Order, missing_shards, run_here, submit_to_slurm
from jobs.submit.prepare import name_from, prepare_run
from jobs.submit.sizing import estimate
from jobs.submit.speed import kind_of, measured
from jobs.worker.measuring import WORTH, Findings, is_wanted, read_findings
from ldm.errors import RunError
from ldm.inference.files import write_atomically
from ldm.inference.prompts import count_prompts

log = logging.getLogger(__name__)

BATCHES = 2  # the first builds kernels and fills caches, the second tells
LOOK_SECONDS, ASK_QUEUE_SECONDS = 1.0, 10.0


def probe(prompts: Path, settings: Settings, task: Callable[[List[str]], None]) -> Iterator[str]:
    """Make two batches of the file's first pictures on one card, wait for them, and say what they tell, line by line.

    The run stays: `submit` finds it and sizes its shards after it. Raises RunError if no picture comes of it.
    """
    spec = settings.spec
    name = f"probe-{spec.name or name_from(prompts)}-{_place(settings)}"
    pictures = BATCHES * spec.batch_size
    own = dataclasses.replace(
        spec, name=name, cards=1, images_per_shard=pictures, output="folder", post=[], mail=None, webhook=None
    )
    prepared = prepare_run(prompts, Settings(own, settings.profile), limit=pictures)
    run, info = prepared.run, prepared.info
    if info.model.name != REHEARSAL and not run.measured_path.exists():
        write_atomically(run.measure_path, b"")
    if _is_left(run, info):
        _make(run, info, Settings(own, settings.profile), task)
    speed = measured(run, kind_of(settings))
    if speed is None:
        raise RunError(f"the probe made no picture; see python -m jobs logs {run.path} --failed")
    yield f"{speed.seconds_per_image:.3g} s an image, {speed.loading:.1f} s until the first could begin, {speed.source}"
    images = count_prompts(prompts) * spec.images_per_prompt
    expected = estimate([[images]], own, settings.profile, speed)
    cost = "" if expected.cost is None else f", {expected.cost:.2f} {settings.profile.currency}".rstrip()
    yield f"all {images} pictures: about {expected.card_hours:.2f} card-hours{cost}"
    findings = read_findings(run)
    if findings is not None and findings.tried:
        yield from advice(findings.up_to(images), spec.batch_size, prompts)


def advice(findings: Findings, planned: int, prompts: Path) -> Iterator[str]:
    """What was found, and the batch size to type; `planned` is that of the probe."""
    tried = ", ".join(f"{each.pictures}: {1000 * each.seconds:.3g}" for each in findings.tried)
    yield f"pictures at once: ms a picture and step, {findings.width}x{findings.height} px, {findings.device}: {tried}"
    if findings.most is not None:
        yield f"there is memory for {findings.most} pictures at once"
    advised, slower = findings.advised, findings.slower(planned)
    if advised == planned or (slower is not None and slower * (1 - WORTH) <= 1):
        yield f"batch_size={planned} is as quick as any"
        return
    compared = "" if slower is None else f", {slower:.2f} times as quick as batch_size={planned}"
    yield f"quickest: python -m jobs submit {shlex.quote(str(prompts))} batch_size={advised}{compared}"


def _is_left(run: RunDir, info: RunInfo) -> bool:
    return bool(missing_shards(run, info)) or is_wanted(run)


def _place(settings: Settings) -> str:
    """Where the probe is made, as a part of its name: one made elsewhere, or on other cards, is another."""
    profile, device = settings.profile, settings.spec.device
    cluster = re.sub(r"\.ya?ml$", "", Path(settings.spec.cluster).name)
    words = [cluster, profile.partition, profile.gres, None if device == "auto" else device]
    return re.sub(r"[^\w.+-]+", "-", "-".join(word for word in words if word))


def _make(run: RunDir, info: RunInfo, settings: Settings, task: Callable[[List[str]], None]) -> None:
    shards = missing_shards(run, info) or [0]
    if settings.profile.scheduler == "local":
        run_here(run, settings, shards, lambda: None)
        return
    tasks = submit_to_slurm(run, settings, Order(tuple(shards)), task)
    log.info("submitted as job %s, waiting for it", tasks[0].job)
    asked = time.monotonic()
    while _is_left(run, info):
        time.sleep(LOOK_SECONDS)
        if time.monotonic() - asked >= ASK_QUEUE_SECONDS:
            asked = time.monotonic()
            if live_jobs(run) == {}:
                return
