"""What to start of a run, by the speed that is known and the nodes to keep off, and what that will cost."""

from __future__ import annotations

import logging
import math
import shlex
import shutil
from typing import Dict, List, Optional, Sequence

from jobs.attendance import read_attendances
from jobs.cluster.nodes import failing_nodes, of_late
from jobs.cluster.presence import lost_workers
from jobs.cluster.queue import Ask, JobState, known_jobs, live_jobs, patient
from jobs.cluster.slurm import expected_start
from jobs.config import Settings
from jobs.plan import groups
from jobs.records import read_summary
from jobs.rundir import RunDir, RunInfo, shard_indices
from jobs.submit.after import is_after
from jobs.submit.launch import Order, after_steps, asked_of_slurm
from jobs.submit.sizing import Work, estimate, load_of, shards_per_process, with_cards_for
from jobs.submit.speed import known_speed
from ldm.errors import SchedulerError

log = logging.getLogger(__name__)


def jobs_in_queue(run: RunDir, ask: Ask = patient) -> Optional[Dict[str, JobState]]:
    """The run's jobs in the queue, by id; None where there is no queue to ask. SchedulerError where it does not answer
    though jobs of the run may be in it, which would be submitted again.
    """
    live = live_jobs(run, ask)
    known = sorted(known_jobs(run), key=int)
    if live is None and known and shutil.which("squeue"):
        raise SchedulerError(
            "squeue does not answer, so what is queued already would be submitted again; wait until it does, or, once "
            f"none of the jobs {' '.join(known)} is left, type: "
            f"python -m jobs render {shlex.quote(str(run.path))} | sbatch"
        )
    return live


def place_order(
    run: RunDir,
    info: RunInfo,
    settings: Settings,
    shards: Sequence[int],
    live: Optional[Dict[str, JobState]],
    asked: float,
) -> Order:
    """How to start `shards`, or as many of them as the queue takes; `live` are the run's jobs in the queue at the time
    `asked`, None where it could not be asked.
    """
    profile, spec = settings.profile, with_cards_for(settings.spec, len(shards))
    speed = known_speed(spec, profile, info.model, run)
    free = _free_jobs(run, settings, live or {})
    if free == 0:
        raise SchedulerError(
            f"max_submit_jobs={profile.max_submit_jobs} allows no more beside the jobs of this run in the queue; "
            f"python -m jobs resume {shlex.quote(str(run.path))} submits more once some have ended"
        )
    load = load_of(Work(len(shards), info.plan.images_per_shard, speed), spec, profile, free)
    if load.shards < len(shards):
        log.warning("%d of %d shards are submitted, as max_submit_jobs=%d allows no more; python -m jobs resume %s "
                    "submits more of them once jobs have ended",
                    load.shards, len(shards), profile.max_submit_jobs, shlex.quote(str(run.path)))  # fmt: skip
    attendances = of_late(read_attendances(run.workers), asked)
    bad = failing_nodes(attendances, lost_workers(run, attendances, live, asked))
    for node, failures in bad.items():
        log.warning("%d workers have failed on node %s: it is left out of this submission", failures, node)
    return Order(tuple(shards[: load.shards]), load.per_process, load.links, tuple(sorted(bad)), speed)


def _free_jobs(run: RunDir, settings: Settings, live: Dict[str, JobState]) -> Optional[int]:
    """How many tasks may be submitted beside the run's jobs in the queue, and the one behind its pictures."""
    most = settings.profile.max_submit_jobs
    if most is None:
        return None
    there = sum(not is_after(run, state) for state in live.values())
    return max(0, most - there - bool(after_steps(settings.spec)))


def parts_of(run: RunDir, info: RunInfo, settings: Settings) -> int:
    """The tasks of one array that makes the whole run: longer ones where the site takes no more."""
    spec, profile = settings.spec, settings.profile
    speed = known_speed(spec, profile, info.model, run)
    per_task = spec.cards * shards_per_process(spec, info.plan.images_per_shard, speed)
    most = min(profile.max_array_size, profile.max_submit_jobs or profile.max_array_size)
    return min(math.ceil(info.plan.shards / per_task), most)


def forecast(run: RunDir, info: RunInfo, settings: Settings, order: Order) -> List[str]:
    """What an order will cost, and when Slurm would begin with it if it were submitted now, as lines for people."""
    profile, spec, speed = settings.profile, with_cards_for(settings.spec, len(order.shards)), order.speed
    lines = []
    if speed is None:
        lines.append(
            "cost unknown: nothing has been measured yet; python -m jobs probe PROMPTS measures a few pictures"
        )
    else:
        left = [_left(run, info, shard) for shard in order.shards]
        expected = estimate(groups(left, spec.cards * order.per_process), spec, profile, speed)
        cost = "" if expected.cost is None else f", {expected.cost:.2f} {profile.currency}".rstrip()
        minutes = math.ceil(expected.task_seconds / 60)
        known = f"{speed.seconds_per_image:.2g} s an image, {speed.source}"
        lines.append(f"about {expected.card_hours:.2f} card-hours{cost}; a task lasts {minutes} min ({known})")
    asked = asked_of_slurm(run, settings, order)
    begins = expected_start({key: value for key, value in asked.items() if key not in profile.omit})
    return lines if begins is None else [*lines, f"Slurm expects the first task to begin at {begins}"]


def _left(run: RunDir, info: RunInfo, shard: int) -> int:
    """How many pictures of a shard are still to be made, as far as its records tell."""
    summary = read_summary(run.records_path(shard))
    return len(shard_indices(info.plan, shard)) - (summary.made if summary else 0)
