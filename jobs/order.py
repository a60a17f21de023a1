"""What to start of a run, by the speed that is known and the nodes to keep off, and what that will cost."""

from __future__ import annotations

import logging
import math
import time
from typing import Dict, List, Optional, Sequence

from jobs.attendance import read_attendances
from jobs.config import Settings
from jobs.launch import Order
from jobs.nodes import failing_nodes
from jobs.presence import lost_workers
from jobs.queue import JobState
from jobs.rundir import RunDir, RunInfo
from jobs.sbatch import directives
from jobs.sizing import estimate, links_of, shards_per_process
from jobs.slurm import expected_start
from jobs.speed import known_speed

log = logging.getLogger(__name__)


def place_order(
    run: RunDir, info: RunInfo, settings: Settings, shards: Sequence[int], live: Optional[Dict[str, JobState]]
) -> Order:
    """How to start `shards`; `live` are the run's jobs in the queue, None where it could not be asked."""
    spec, size = settings.spec, info.plan.images_per_shard
    speed = known_speed(spec, settings.profile, info.model, run)
    per_process = shards_per_process(spec, size, speed)
    seconds = None if speed is None else per_process * size * speed.seconds_per_image + speed.loading
    attendances = read_attendances(run.workers)
    bad = failing_nodes(attendances, lost_workers(run, attendances, live, time.time()))
    for node, failures in bad.items():
        log.warning("%d workers have failed on node %s: it is left out of this submission", failures, node)
    return Order(tuple(shards), per_process, links_of(spec, settings.profile, seconds), tuple(sorted(bad)))


def parts_of(run: RunDir, info: RunInfo, settings: Settings) -> int:
    """The tasks of an array that makes the whole run."""
    spec = settings.spec
    speed = known_speed(spec, settings.profile, info.model, run)
    per_task = spec.cards * shards_per_process(spec, info.plan.images_per_shard, speed)
    return math.ceil(info.plan.shards / per_task)


def forecast(run: RunDir, info: RunInfo, settings: Settings, order: Order) -> List[str]:
    """What an order will cost, and when Slurm expects it to begin, as lines for people."""
    spec, profile, size = settings.spec, settings.profile, info.plan.images_per_shard
    speed = known_speed(spec, profile, info.model, run)
    lines = []
    if speed is None:
        lines.append(
            "cost unknown: nothing has been measured yet; python -m jobs probe PROMPTS measures a few pictures"
        )
    else:
        tasks = [order.shards[start : start + spec.cards * order.per_process]
                 for start in range(0, len(order.shards), spec.cards * order.per_process)]  # fmt: skip
        images = min(len(order.shards) * size, info.plan.images)
        expected = estimate(images, tasks, size, spec, profile, speed)
        cost = "" if expected.cost is None else f", {expected.cost:.2f} {profile.currency}".rstrip()
        minutes = math.ceil(expected.task_seconds / 60)
        known = f"{speed.seconds_per_image:.2g} s an image, {speed.source}"
        lines.append(f"about {expected.card_hours:.2f} card-hours{cost}; a task lasts {minutes} min ({known})")
    begins = expected_start({key: value for key, value in directives(run, settings).items() if key not in profile.omit})
    return lines if begins is None else [*lines, f"Slurm expects the first task to begin at {begins}"]
