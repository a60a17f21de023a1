"""Steering a run that is under way: pause it, go on, cancel it, and give its failed pictures another chance."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from dataclasses import dataclass
from typing import Any, Callable, Collection, Dict, List, Optional, Sequence, Set, Tuple

from jobs.attendance import read_attendances
from jobs.cluster.processes import works_here
from jobs.cluster.queue import Ask, JobState, known_jobs, live_jobs, patient, writes_into
from jobs.cluster.slurm import run_command
from jobs.records import read_summary
from jobs.rundir import RunDir, RunInfo
from ldm.errors import SchedulerError
from ldm.inference.files import naming, write_atomically

JOBS_AT_ONCE = 100


@dataclass(frozen=True)
class Cancelled:
    """What was ended: the numbers of jobs, how many of their tasks were in the queue, and processes of this machine.

    `spared` are the user's jobs that work on the run and are more than it, such as an interactive allocation.
    """

    jobs: Tuple[str, ...]
    tasks: int
    processes: Tuple[int, ...]
    spared: Tuple[str, ...]


def pause(run: RunDir) -> bool:
    """Have the workers of a run end between batches, and new ones at once; False if it was paused already."""
    with naming(run.pause_path):
        try:
            run.pause_path.open("xb").close()
        except FileExistsError:
            return False
    return True


def unpause(run: RunDir) -> bool:
    """Let workers work again; False if the run was not paused."""
    with naming(run.pause_path):
        try:
            run.pause_path.unlink()
        except FileNotFoundError:
            return False
    return True


def cancel(run: RunDir, ask: Ask = patient, command: Callable[[Sequence[str]], str] = run_command) -> Cancelled:
    """End the user's own jobs of this run, those that wait too, and its processes on this machine.

    SchedulerError where the run has to do with a queue that does not answer; the processes have been ended then.
    """
    processes = _end_processes(run)
    live = live_jobs(run, ask, users={os.getuid()})
    if live is None and known_jobs(run):
        raise SchedulerError(
            "squeue does not answer, so no job was cancelled; wait until it does, or give scancel the numbers "
            f"{' '.join(sorted(known_jobs(run), key=int))}"
        )
    own, spared = _sorted_out(run, live or {}, ask)
    for start in range(0, len(own), JOBS_AT_ONCE):
        command(["scancel", "--quiet", *own[start : start + JOBS_AT_ONCE]])
    tasks = sum(state.job in own for state in (live or {}).values())
    return Cancelled(jobs=tuple(own), tasks=tasks, processes=tuple(processes), spared=tuple(spared))


def forget_failures(run: RunDir, info: RunInfo, busy: Collection[int] = ()) -> int:
    """Forget which pictures failed, so that they are tried again from the first; how many there were.

    The shards in `busy` are left alone: a worker there would write down again what it knows.
    """
    forgotten = 0
    for shard in range(info.plan.shards):
        path = run.records_path(shard)
        summary = read_summary(path)
        if summary is not None and summary.failed and shard not in busy:
            lines = path.read_bytes().split(b"\n")
            write_atomically(path, b"\n".join(line for line in map(_forgiven, lines) if line is not None))
            forgotten += summary.failed
    return forgotten


def failed_shards(run: RunDir, info: RunInfo) -> Set[int]:
    """The shards with pictures that failed."""
    summaries = [read_summary(run.records_path(shard)) for shard in range(info.plan.shards)]
    return {summary.shard for summary in summaries if summary is not None and summary.failed}


def _sorted_out(run: RunDir, live: Dict[str, JobState], ask: Ask) -> Tuple[List[str], List[str]]:
    """The numbers of the jobs that are this run's alone, and of those that only help it.

    A job is the run's if it has its name, or writes its log here. An interactive allocation does neither.
    """
    tasks: Dict[str, str] = {}
    for task, state in live.items():
        tasks.setdefault(state.job, task)
    own = [job for job, task in tasks.items() if live[task].name == run.path.name or writes_into(run, task, ask)]
    return own, [job for job in tasks if job not in own]


def _end_processes(run: RunDir) -> List[int]:
    """Tell the run's processes outside Slurm on this machine to stop."""
    told: List[int] = []
    for each in read_attendances(run.workers):
        if not each.job and works_here(run, each):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(each.pid, signal.SIGTERM)
                told.append(each.pid)
    return told


def _forgiven(line: bytes) -> Optional[bytes]:
    """A line of a records file without what it says of failures; None if that is all it says."""
    if b'"error":' not in line and b'"failed":' not in line:
        return line
    try:
        values: Any = json.loads(line)
    except ValueError:
        return line
    if "error" in values and "sha256" not in values:
        return None
    if "sessions" not in values:
        return line
    forgiven = {**values, "done": values["done"] and not values["failed"], "failed": 0}
    return json.dumps(forgiven, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
