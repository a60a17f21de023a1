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
from typing import Callable, Iterator, List, Mapping, Optional, Sequence, Tuple

from jobs.advice import site_advice
from jobs.config import Settings
from jobs.pictures import is_complete
from jobs.plan import index_ranges
from jobs.reading import reading
from jobs.rundir import RunDir, RunInfo
from jobs.sbatch import directives, render_after, setup_blocks, worker_words
from jobs.sizing import arrays_of
from jobs.slurm import NotInstalledError, outside_any_job, run_command, submit_array, submitit_parameters
from jobs.spec import POST_STEPS, JobSpec
from ldm.errors import SchedulerError
from ldm.inference.files import naming, sweep, write_atomically
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
    return [shard for shard in range(info.plan.shards) if not is_complete(run, info, shard)]


@dataclass(frozen=True)
class Order:
    """What is to be started of a run: which shards, how many a process goes through, and which nodes to keep off."""

    shards: Tuple[int, ...]
    per_process: int = 1
    links: int = 1  # jobs one behind the other, each going on where the one before had to stop
    exclude: Tuple[str, ...] = ()


def submit_to_slurm(
    run: RunDir, settings: Settings, order: Order, task: Callable[[List[str]], None]
) -> List[ArrayTask]:
    """Submit arrays that make the shards of an order, in their order, and what is to come behind them.

    `task` runs in the job; it is given the words of a command line.
    """
    spec = dataclasses.replace(settings.spec, cards=min(settings.spec.cards, len(order.shards)))
    if spec.cards < settings.spec.cards:
        log.warning("%d cards a task were asked for, and %d are asked of Slurm: there are no more shards to make",
                    settings.spec.cards, spec.cards)  # fmt: skip
    profile, steps = settings.profile, after_steps(spec)
    own = Settings(dataclasses.replace(spec, mail=None) if steps else spec, profile)
    asked = directives(run, own)
    if order.exclude:
        asked["exclude"] = ",".join(filter(None, [asked.get("exclude"), *order.exclude]))
    arrays = arrays_of(order.shards, order.per_process, spec, profile)
    tasks: List[ArrayTask] = []
    last: List[str] = []
    for elements in arrays:
        before: Optional[str] = None
        for _ in range(order.links):
            behind = {} if before is None else {"dependency": f"afterany:{before}"}
            parallel = _parallel_tasks(spec.max_parallel, len(arrays)) or len(elements)
            submitted = _submit(run, own, elements, {**asked, **behind}, parallel, task)
            before = submitted[0].job.partition("_")[0]
            tasks += submitted
        last.append(str(before))
    if steps:
        submit_after(run, Settings(spec, profile), steps, last)
    return tasks


def _submit(
    run: RunDir,
    settings: Settings,
    elements: Sequence[Tuple[int, ...]],
    asked: Mapping[str, str],
    parallel: int,
    task: Callable[[List[str]], None],
) -> List[ArrayTask]:
    """Submit one array, whose files lie in a folder of its own."""
    folder = _log_folder(run)
    parameters = {
        **submitit_parameters(asked, settings.profile.omit),
        "array_parallelism": parallel,
        "setup": "\n".join(setup_blocks(run, settings, {})).splitlines(),
        "srun_args": [*SRUN_ARGUMENTS, f"--cpus-per-task={settings.profile.cpus_per_card}"],
    }
    words = [(_work_words(run, settings, element),) for element in elements]
    python = shlex.quote(settings.profile.python or sys.executable)
    try:
        jobs = submit_array(task, words, folder, parameters, python)
    except NotInstalledError:
        raise
    except SchedulerError as error:
        advice = site_advice(str(error), settings.profile, run_command)
        raise SchedulerError(f"{error}{advice and f'; {advice}'}") from error
    submitted = [_array_task(folder.name, job, element, settings.spec.cards) for job, element in zip(jobs, elements)]
    script = folder / f"{jobs[0].partition('_')[0]}_submission.sh"
    _note(run, "slurm", submitted, script.read_text(encoding="utf-8"))
    return submitted


def after_steps(spec: JobSpec) -> List[str]:
    """The commands behind the last picture, in the order in which each can use what the one before left."""
    return [*(step for step in POST_STEPS if step in spec.post), *(["notify"] if spec.webhook else [])]


def submit_after(run: RunDir, settings: Settings, steps: Sequence[str], jobs: Sequence[str]) -> str:
    """Submit one job of one core for `steps` that begins once `jobs` have ended, however; its number."""
    folder = _log_folder(run)
    with naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
    script = folder / "after.sbatch"
    text = render_after(run, settings, steps, f"afterany:{':'.join(jobs)}", folder / "after.log")
    write_atomically(script, text.encode("utf-8"))
    with outside_any_job():
        job = run_command(["sbatch", "--parsable", str(script)]).strip().partition(";")[0]
    _note(run, "slurm", [ArrayTask(job, (), (f"{folder.name}/after.log",))], text)
    log.info("behind the last picture: %s, as job %s", ", ".join(steps), job)
    return job


def _log_folder(run: RunDir) -> Path:
    """A folder below logs/ for what the next submission leaves: no folder has more than one array's files."""
    return run.logs / f"{len(run.submissions()) + 1:03}"


def after_here(run: RunDir, spec: JobSpec) -> int:
    """Do what comes behind the last picture in this process; the worst exit status."""
    from jobs.cli import main

    words = [[step, str(run.path)] for step in after_steps(spec) if step != "notify"]
    if spec.webhook:
        words.append(["notify", str(run.path), f"webhook={spec.webhook}"])
    return max((main(each) for each in words), default=0)


def sweep_run(run: RunDir) -> None:
    """Remove what killed processes have begun anywhere in the run; a live one whose part is taken writes it again."""
    swept = 0
    for parent in (run.path, run.samples, run.path / "records", run.workers):
        swept += sweep(parent)
    for parent in (run.samples, run.workers):
        with reading(parent):
            folders = [entry.path for entry in os.scandir(parent) if entry.is_dir()] if parent.is_dir() else []
        swept += sum(sweep(Path(folder)) for folder in folders)
    if swept:
        log.info("%d files that killed processes had begun are removed", swept)


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


def _parallel_tasks(max_parallel: Optional[int], arrays: int) -> Optional[int]:
    """How many tasks each of several arrays may run at a time, so that together they keep the limit."""
    return None if max_parallel is None else max(1, max_parallel // arrays)


def _array_task(folder: str, job: str, shards: Tuple[int, ...], cards: int) -> ArrayTask:
    """submitit names the logs of a task after its id and the rank of each process."""
    return ArrayTask(job, shards, tuple(f"{folder}/{job}_{rank}_log.out" for rank in range(min(cards, len(shards)))))


def _note(run: RunDir, scheduler: str, tasks: Sequence[ArrayTask], script: str) -> None:
    """Keep what was submitted, with the exact script."""
    submitted = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    described = [dataclasses.asdict(task) for task in tasks]
    run.add_submission({"submitted": submitted, "scheduler": scheduler, "tasks": described, "script": script})
