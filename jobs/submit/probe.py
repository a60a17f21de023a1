"""A few pictures of a prompts file, made as all of them will be, so that the whole can be sized and priced."""

from __future__ import annotations

import dataclasses
import logging
import re
import time
from pathlib import Path
from typing import Callable, Iterator, List

from jobs.cluster.queue import live_jobs
from jobs.config import Settings
from jobs.rundir import RunDir, RunInfo
from jobs.submit.launch import Order, missing_shards, run_here, submit_to_slurm
from jobs.submit.prepare import name_from, prepare_run
from jobs.submit.sizing import estimate
from jobs.submit.speed import kind_of, measured
from ldm.errors import RunError
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
    if missing_shards(run, info):
        _make(run, info, Settings(own, settings.profile), task)
    speed = measured(run, kind_of(settings))
    if speed is None:
        raise RunError(f"the probe made no picture; see python -m jobs logs {run.path} --failed")
    yield f"{speed.seconds_per_image:.3g} s an image, {speed.loading:.1f} s until the first could begin, {speed.source}"
    images = count_prompts(prompts) * spec.images_per_prompt
    expected = estimate([[images]], own, settings.profile, speed)
    cost = "" if expected.cost is None else f", {expected.cost:.2f} {settings.profile.currency}".rstrip()
    yield f"all {images} pictures: about {expected.card_hours:.2f} card-hours{cost}"


def _place(settings: Settings) -> str:
    """Where the probe is made, as a part of its name: one made elsewhere, or on other cards, is another."""
    profile, device = settings.profile, settings.spec.device
    cluster = re.sub(r"\.ya?ml$", "", Path(settings.spec.cluster).name)
    words = [cluster, profile.partition, profile.gres, None if device == "auto" else device]
    return re.sub(r"[^\w.+-]+", "-", "-".join(word for word in words if word))


def _make(run: RunDir, info: RunInfo, settings: Settings, task: Callable[[List[str]], None]) -> None:
    if settings.profile.scheduler == "local":
        run_here(run, settings, missing_shards(run, info), lambda: None)
        return
    tasks = submit_to_slurm(run, settings, Order(tuple(missing_shards(run, info))), task)
    log.info("submitted as job %s, waiting for it", tasks[0].job)
    asked = time.monotonic()
    while missing_shards(run, info):
        time.sleep(LOOK_SECONDS)
        if time.monotonic() - asked >= ASK_QUEUE_SECONDS:
            asked = time.monotonic()
            if live_jobs(run) == {}:
                return
