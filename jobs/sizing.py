"""How much work goes into a shard, a task and a chain of jobs. Pure functions over seconds and counts.

A task should last about `task_min` minutes: long enough that its start-up does not matter, short enough that the queue
can fit it in and a lost one costs little.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import List, Optional, Sequence, Tuple

from jobs.plan import groups
from jobs.spec import ClusterProfile, JobSpec

USUAL_IMAGES_PER_SHARD = 100  # where nothing is known of the speed
MOST_IMAGES_PER_SHARD = 1000  # so that no folder of pictures is shared by many processes
MOST_SHARDS = 1000  # of a plan, unless it has over a million pictures: as many records lie in one folder
STARTING_SHARE = 0.05  # of a task's time, at most
LIMIT_SHARE = 0.8  # of the time limit that a task is planned for
LOGS_PER_FOLDER = 999


@dataclass(frozen=True)
class Speed:
    """What is known of one card: seconds a picture, and seconds until a process can begin. `source` is for people."""

    seconds_per_image: float
    loading: float
    source: str


def images_per_shard(spec: JobSpec, images: int, speed: Optional[Speed]) -> int:
    """How many pictures a shard holds: as many as take `task_min`, and few enough that every card has one."""
    if spec.images_per_shard is not None:
        return spec.images_per_shard
    unknown = MOST_IMAGES_PER_SHARD if spec.output == "webdataset" else USUAL_IMAGES_PER_SHARD  # a tar each
    by_time = unknown if speed is None else spec.task_min * 60 / speed.seconds_per_image
    for_every_card = math.ceil(images / spec.cards)
    wanted = min(math.floor(by_time), for_every_card, MOST_IMAGES_PER_SHARD)
    return max(wanted, min(spec.batch_size, for_every_card), math.ceil(images / MOST_SHARDS), 1)


def shards_per_process(spec: JobSpec, images_per_shard: int, speed: Optional[Speed]) -> int:
    """How many shards one process of a task goes through; one where the user has sized shards, or nothing is known."""
    if speed is None or spec.images_per_shard is not None:
        return 1
    seconds = max(spec.task_min * 60, speed.loading / STARTING_SHARE)
    seconds = min(seconds, LIMIT_SHARE * spec.time_limit_min * 60)
    return max(1, round(seconds / (images_per_shard * speed.seconds_per_image)))


def arrays_of(
    shards: Sequence[int], per_process: int, spec: JobSpec, profile: ClusterProfile
) -> List[List[Tuple[int, ...]]]:
    """The shards of each task of each array. What the site and the user limit makes tasks longer, never fewer pictures.

    An array has one task a number below MaxArraySize, and no more than its folder may have files: submitit leaves three
    a process. More arrays than `max_parallel` could not keep to it together.
    """
    largest = min(profile.max_array_size, LOGS_PER_FOLDER // (1 + 2 * spec.cards))
    most_tasks = min(profile.max_submit_jobs or math.inf, (spec.max_parallel or math.inf) * largest)
    per_process = max(per_process, math.ceil(len(shards) / (spec.cards * most_tasks)))
    tasks = groups(shards, spec.cards * per_process)
    return [list(tasks[start : start + largest]) for start in range(0, len(tasks), largest)]


def links_of(spec: JobSpec, profile: ClusterProfile, task_seconds: Optional[float]) -> int:
    """How many jobs, one behind the other, each array needs: one where a job puts itself back into the queue."""
    if spec.links is not None:
        return spec.links
    if task_seconds is None or (spec.requeue and profile.requeue):
        return 1
    return max(1, math.ceil(task_seconds / (LIMIT_SHARE * spec.time_limit_min * 60)))


@dataclass(frozen=True)
class Estimate:
    """What is still to be made, before it is: hours of one card, money where a price is known, seconds of a task."""

    card_hours: float
    cost: Optional[float]
    task_seconds: float


def estimate(
    images: int,
    tasks: Sequence[Tuple[int, ...]],
    images_per_shard: int,
    spec: JobSpec,
    profile: ClusterProfile,
    speed: Speed,
) -> Estimate:
    """The price of `images` in these tasks; cards of a task that have less to do are held as long as its longest."""
    processes = sum(min(len(task), spec.cards) for task in tasks)
    card_hours = (images * speed.seconds_per_image + processes * speed.loading) / 3600
    longest = max(math.ceil(len(task) / spec.cards) for task in tasks)
    return Estimate(
        card_hours=card_hours,
        cost=None if profile.price_per_card_hour is None else card_hours * profile.price_per_card_hour,
        task_seconds=longest * images_per_shard * speed.seconds_per_image + speed.loading,
    )
