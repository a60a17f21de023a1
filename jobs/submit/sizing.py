"""How much work goes into a shard, a task and a chain of jobs. Pure functions over seconds and counts.

A task should last about `task_min` minutes: long enough that its start-up does not matter, short enough that the queue
can fit it in and a lost one costs little.
"""

from __future__ import annotations

import dataclasses
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
MANY = 10**9  # where there is no limit


@dataclass(frozen=True)
class Speed:
    """What is known of one card: seconds a picture, and seconds until a process can begin. `source` is for people."""

    seconds_per_image: float
    loading: float
    source: str


@dataclass(frozen=True)
class Work:
    """Shards that are to be made, of so many pictures each, and how fast a card is, if that is known."""

    shards: int
    images_per_shard: int
    speed: Optional[Speed]

    def fitting(self, seconds: float) -> int:
        """How many shards a process can go through in that time; 0 where the speed is not known."""
        if self.speed is None:
            return 0
        return math.floor((seconds - self.speed.loading) / (self.images_per_shard * self.speed.seconds_per_image))

    def links(self, per_process: int, seconds: float) -> int:
        """How many jobs of so many seconds, one behind the other, a process needs for its shards; each loads the model
        again. One where none of them could make a picture.
        """
        if self.speed is None or seconds < self.speed.loading + self.speed.seconds_per_image:
            return 1
        sampling = per_process * self.images_per_shard * self.speed.seconds_per_image
        return max(1, math.ceil(sampling / (seconds - self.speed.loading)))


def images_per_shard(spec: JobSpec, images: int, speed: Optional[Speed]) -> int:
    """How many pictures a shard holds: as many as take `task_min`, in whole batches, for each size of batch has kernels
    of its own that a card must find; and few enough that every card has one.
    """
    if spec.images_per_shard is not None:
        return spec.images_per_shard
    unknown = MOST_IMAGES_PER_SHARD if spec.output == "webdataset" else USUAL_IMAGES_PER_SHARD  # a tar each
    by_time = unknown if speed is None else spec.task_min * 60 / speed.seconds_per_image
    for_every_card = math.ceil(images / spec.cards)
    timely = min(math.floor(by_time), MOST_IMAGES_PER_SHARD)
    wanted = min(_whole_batches(timely, spec.batch_size), for_every_card)
    return max(wanted, min(spec.batch_size, for_every_card), math.ceil(images / MOST_SHARDS), 1)


def _whole_batches(images: int, batch_size: int) -> int:
    """About so many pictures as a multiple of the batch size, MOST_IMAGES_PER_SHARD at most unless a batch has more."""
    rounded = math.ceil(images / batch_size) * batch_size
    return rounded if rounded <= MOST_IMAGES_PER_SHARD else max(batch_size, rounded - batch_size)


def shards_per_process(spec: JobSpec, images_per_shard: int, speed: Optional[Speed]) -> int:
    """How many shards one process of a task goes through; one where the user has sized shards, or nothing is known."""
    if speed is None or spec.images_per_shard is not None:
        return 1
    seconds = max(spec.task_min * 60, speed.loading / STARTING_SHARE)
    seconds = min(seconds, LIMIT_SHARE * spec.time_limit_min * 60)
    return max(1, round(seconds / (images_per_shard * speed.seconds_per_image)))


def with_cards_for(spec: JobSpec, shards: int) -> JobSpec:
    """The job with no more cards a task than there are shards to make."""
    return dataclasses.replace(spec, cards=min(spec.cards, shards))


def largest_array(spec: JobSpec, profile: ClusterProfile) -> int:
    """How many tasks an array may have: one a number below MaxArraySize, and no more than its folder may have files:
    submitit leaves three a process.
    """
    return max(1, min(profile.max_array_size, LOGS_PER_FOLDER // (1 + 2 * spec.cards)))


def arrays_of(
    shards: Sequence[int], per_process: int, spec: JobSpec, profile: ClusterProfile
) -> List[List[Tuple[int, ...]]]:
    """The shards of each task of each array."""
    tasks = groups(shards, spec.cards * per_process)
    return [list(array) for array in groups(tasks, largest_array(spec, profile))]


@dataclass(frozen=True)
class Load:
    """What is asked of a cluster at once: for how many shards, how many a process goes through, and how many jobs stand
    one behind the other, each going on where the one before had to stop.
    """

    shards: int
    per_process: int
    links: int


def load_of(work: Work, spec: JobSpec, profile: ClusterProfile, jobs: Optional[int]) -> Load:
    """The load that makes all the work with at most `jobs` jobs in the queue (None: no limit) and `max_parallel` tasks
    at a time: limits make tasks longer, and longer tasks need more links where jobs may not requeue. Where so few jobs
    cannot do all of it, the load has as many shards as they can do, at least one task.

    Together, more arrays than `max_parallel` could not keep to it.
    """
    planned = shards_per_process(spec, work.images_per_shard, work.speed)
    parallel = (spec.max_parallel or MANY) * largest_array(spec, profile)
    most = jobs or MANY

    def load(links: int) -> Load:
        per_process = max(planned, math.ceil(work.shards / (spec.cards * min(most // links, parallel))))
        return Load(work.shards, per_process, links_of(work, per_process, spec, profile))

    links = 1
    while links <= most:
        found = load(links)
        if found.links <= links:
            return found
        links = found.links  # fewer were not enough for tasks that were shorter still
    per_process = max(planned, (spec.links or 1) * work.fitting(LIMIT_SHARE * spec.time_limit_min * 60))
    links = links_of(work, per_process, spec, profile)
    return Load(min(work.shards, max(1, most // links) * spec.cards * per_process), per_process, links)


def links_of(work: Work, per_process: int, spec: JobSpec, profile: ClusterProfile) -> int:
    """How many jobs, one behind the other, each array needs: one where a job puts itself back into the queue."""
    if spec.links is not None:
        return spec.links
    return 1 if spec.requeue and profile.requeue else work.links(per_process, LIMIT_SHARE * spec.time_limit_min * 60)


@dataclass(frozen=True)
class Estimate:
    """What is still to be made, before it is: hours of one card, money where a price is known, seconds of a task."""

    card_hours: float
    cost: Optional[float]
    task_seconds: float


def estimate(tasks: Sequence[Sequence[int]], spec: JobSpec, profile: ClusterProfile, speed: Speed) -> Estimate:
    """The price of tasks, each given by the pictures that are left in its shards, which its cards take by turns.

    A task is charged for all its cards until the last of them is done.
    """
    longest = [max(sum(task[card :: spec.cards]) for card in range(spec.cards)) for task in tasks]
    seconds = [images * speed.seconds_per_image + speed.loading for images in longest]
    card_hours = spec.cards * sum(seconds) / 3600
    return Estimate(
        card_hours=card_hours,
        cost=None if profile.price_per_card_hour is None else card_hours * profile.price_per_card_hour,
        task_seconds=max(seconds),
    )
