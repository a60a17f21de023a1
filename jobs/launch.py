"""Starting the workers of a run: as job arrays on Slurm, which returns at once, or as processes here, which waits."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import logging
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterator, List, Optional, Sequence, Tuple

from jobs.config import Settings
from jobs.plan import groups, index_ranges
from jobs.records import is_complete
from jobs.rundir import RunDir, RunInfo, shard_files
from jobs.sbatch import directives, setup_blocks, worker_words
from jobs.slurm import submit_array, submitit_parameters
from ldm.inference.files import naming
from ldm.inference.models import PROJECT_ROOT

log = logging.getLogger(__name__)

POLL_SECONDS = 0.3
# Independent processes: one that fails must not end the others, whatever the site has set. What the setup exported
# reaches them also where the job was submitted with --export=NONE, which srun would take over.
SRUN_ARGUMENTS = ("--kill-on-bad-exit=0", "--wait=0", "--export=ALL")


@dataclass(frozen=True)
class ArrayTask:
    """One task of an array: its id at the scheduler, the shards of its processes, and the log of each process."""

    job: str
    shards: Tuple[int, ...]
    logs: Tuple[str, ...]


def missing_shards(run: RunDir, info: RunInfo) -> List[int]:
    """The shards that have something left to make."""
    shards = range(info.plan.shards)
    return [shard for shard in shards if not is_complete(run.records_path(shard), shard_files(run, info, shard))]


def submit_to_slurm(
    run: RunDir, settings: Settings, shards: Sequence[int], task: Callable[[List[str]], None]
) -> List[ArrayTask]:
    """Submit arrays that make `shards`, one a card, in their order; more than one where the site limits arrays.

    `task` runs in the job; it is given the words of a command line.
    """
    spec = dataclasses.replace(settings.spec, cards=min(settings.spec.cards, len(shards)))
    profile = settings.profile
    settings = Settings(spec, profile)
    parameters = {
        **submitit_parameters(directives(run, settings), profile.omit),
        "setup": "\n".join(setup_blocks(run, settings, {})).splitlines(),
        "srun_args": [*SRUN_ARGUMENTS, f"--cpus-per-task={profile.cpus_per_card}"],
    }
    tasks: List[ArrayTask] = []
    arrays = _arrays(shards, spec.cards, profile.max_array_size)
    for elements in arrays:
        parameters["array_parallelism"] = _parallel_tasks(spec.max_parallel, len(arrays)) or len(elements)
        words = [(_work_words(run, settings, element),) for element in elements]
        jobs = submit_array(task, words, run.logs, parameters, shlex.quote(profile.python or sys.executable))
        submitted = [_array_task(job, element) for job, element in zip(jobs, elements)]
        _note(
            run, "slurm", submitted, (run.logs / f"{jobs[0].split('_')[0]}_submission.sh").read_text(encoding="utf-8")
        )
        tasks += submitted
    return tasks


def run_here(run: RunDir, settings: Settings, shards: Sequence[int], on_wait: Callable[[], None]) -> int:
    """Start one process a card on this machine, wait for them, and return the highest of their exit statuses.

    `on_wait` is called while they work. When it, or the user, interrupts the wait, the processes are ended.
    """
    processes = min(settings.spec.cards, len(shards))
    words = _work_words(run, settings, tuple(shards))
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    logs = [run.logs / f"local-{stamp}-{os.getpid()}-{rank}.log" for rank in range(processes)]
    _note(run, "local", [ArrayTask(f"local-{os.getpid()}", tuple(shards), tuple(path.name for path in logs))], "")
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(_worker(words, rank, processes, path)) for rank, path in enumerate(logs)]
        while any(worker.poll() is None for worker in workers):
            on_wait()
            time.sleep(POLL_SECONDS)
        return max(_status(worker.returncode) for worker in workers)


@contextlib.contextmanager
def _worker(words: Sequence[str], rank: int, processes: int, log_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A worker process, its output in a log; ended when the block ends before it."""
    environ = {
        **os.environ,
        "RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_RANK": str(rank),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(PROJECT_ROOT), os.environ.get("PYTHONPATH")])),
    }
    with naming(log_path), log_path.open("wb") as output:
        command = [sys.executable, "-m", "jobs", *words]
        worker = subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        yield worker
    finally:
        if worker.poll() is None:
            worker.terminate()
            worker.wait()


def _status(returncode: int) -> int:
    """A process's exit status as a shell has it: 128 + the signal that ended it."""
    return 128 - returncode if returncode < 0 else returncode


def _work_words(run: RunDir, settings: Settings, shards: Sequence[int]) -> List[str]:
    return ["work", f"--shard={index_ranges(shards)}", str(run.path), *worker_words(settings)]


def _arrays(shards: Sequence[int], cards: int, max_array_size: int) -> List[List[Tuple[int, ...]]]:
    """The shards of each task of each array."""
    elements = groups(shards, cards)
    return [elements[start : start + max_array_size] for start in range(0, len(elements), max_array_size)]


def _parallel_tasks(max_parallel: Optional[int], arrays: int) -> Optional[int]:
    """How many tasks each of several arrays may run at a time, so that together they keep the limit."""
    return None if max_parallel is None else max(1, max_parallel // arrays)


def _array_task(job: str, shards: Tuple[int, ...]) -> ArrayTask:
    """submitit names the logs of a task after its id and the rank of each process."""
    return ArrayTask(job, shards, tuple(f"{job}_{rank}_log.out" for rank in range(len(shards))))


def _note(run: RunDir, scheduler: str, tasks: Sequence[ArrayTask], script: str) -> None:
    """Keep what was submitted, with the exact script."""
    submitted = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    described = [dataclasses.asdict(task) for task in tasks]
    run.add_submission({"submitted": submitted, "scheduler": scheduler, "tasks": described, "script": script})
