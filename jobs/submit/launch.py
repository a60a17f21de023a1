"""Starting the workers of a run: as job arrays on Slurm, which returns at once, or as processes here, which waits."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import logging
import os
import re
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from jobs.cluster.advice import site_advice
from jobs.cluster.slurm import NotInstalledError, run_command, submit_array, submitit_parameters
from jobs.config import Settings
from jobs.plan import index_ranges
from jobs.reading import is_there, reading
from jobs.rundir import RunDir, RunInfo
from jobs.spec import POST_STEPS, JobSpec
from jobs.storage.pictures import OnePass, is_complete
from jobs.submit.sbatch import directives, setup_blocks, warn_of_own_folder, worker_words
from jobs.submit.sizing import Speed, arrays_of, with_cards_for
from jobs.submit.speed import kind_of
from ldm.errors import SchedulerError
from ldm.inference.files import naming, sweep, write_atomically
from ldm.inference.models import PROJECT_ROOT

log = logging.getLogger(__name__)

POLL_SECONDS = 0.3
BEGUN = "begun.json"  # in a folder of logs: what is being submitted, until submissions.jsonl tells of it
SCRIPT = re.compile(r"\d+_submission\.sh")  # what submitit leaves there once Slurm has taken the array
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
    names = OnePass()
    return [shard for shard in range(info.plan.shards) if not is_complete(run, info, shard, names)]


@dataclass(frozen=True)
class Order:
    """What is to be started of a run: which shards, how many a process goes through, and which nodes to keep off; and
    the speed that this was worked out with, None where it is not known.
    """

    shards: Tuple[int, ...]
    per_process: int = 1
    links: int = 1  # jobs one behind the other, each going on where the one before had to stop
    exclude: Tuple[str, ...] = ()
    speed: Optional[Speed] = None


def asked_of_slurm(run: RunDir, settings: Settings, order: Order) -> Dict[str, str]:
    """The directives of the arrays of an order, without what makes them arrays."""
    spec = with_cards_for(settings.spec, len(order.shards))
    spec = dataclasses.replace(spec, mail=None) if after_steps(spec) else spec
    asked = directives(run, Settings(spec, settings.profile))
    if order.exclude:
        asked["exclude"] = ",".join(filter(None, [asked.get("exclude"), *order.exclude]))
    return asked


def submit_to_slurm(
    run: RunDir, settings: Settings, order: Order, task: Callable[[List[str]], None]
) -> List[ArrayTask]:
    """Submit arrays that make the shards of an order, in their order; the tasks of each array and of each of its links.

    `task` runs in the job; it is given the words of a command line. SchedulerError names what is in the queue already.
    """
    spec, profile = with_cards_for(settings.spec, len(order.shards)), settings.profile
    if spec.cards < settings.spec.cards:
        log.warning("%d cards a task were asked for, and %d are asked of Slurm: there are no more shards to make",
                    settings.spec.cards, spec.cards)  # fmt: skip
    warn_of_own_folder(run)
    asked = asked_of_slurm(run, settings, order)
    arrays = arrays_of(order.shards, order.per_process, spec, profile)
    tasks: List[ArrayTask] = []
    try:
        for elements in arrays:
            parallel = _parallel_tasks(spec.max_parallel, len(arrays)) or len(elements)
            behind: Dict[str, str] = {}
            for _ in range(order.links):
                submitted = _submit(run, Settings(spec, profile), elements, {**asked, **behind}, parallel, task)
                behind = {"dependency": f"afterany:{number_of(submitted[0])}"}
                tasks += submitted
    except SchedulerError as error:
        if tasks:
            raise SchedulerError(
                f"{error}; {' '.join(dict.fromkeys(map(number_of, tasks)))} are in the queue and stay there: "
                f"python -m jobs resume {shlex.quote(str(run.path))} submits the rest"
            ) from error
        raise
    return tasks


def number_of(task: ArrayTask) -> str:
    """The number that all tasks of an array share."""
    return task.job.partition("_")[0]


def _submit(
    run: RunDir,
    settings: Settings,
    elements: Sequence[Tuple[int, ...]],
    asked: Mapping[str, str],
    parallel: int,
    task: Callable[[List[str]], None],
) -> List[ArrayTask]:
    """Submit one array, whose files lie in a folder of its own."""
    folder = log_folder(run)
    begun = {"cards": settings.spec.cards, "elements": elements, "kind": dataclasses.asdict(kind_of(settings))}
    write_atomically(folder / BEGUN, json.dumps(begun).encode("utf-8"))
    parameters = {
        **submitit_parameters(asked, settings.profile.omit),
        "array_parallelism": parallel,
        "setup": "\n".join(setup_blocks(run, settings, {})).splitlines(),
        "srun_args": [*SRUN_ARGUMENTS, f"--cpus-per-task={settings.profile.cpus_per_card}"],
    }
    words = [(_work_words(run, settings, element),) for element in elements]
    python = shlex.quote(settings.profile.python or sys.executable)
    try:
        submit_array(task, words, folder, parameters, python)
    except NotInstalledError:
        raise
    except SchedulerError as error:
        advice = site_advice(str(error), settings.profile, run_command)
        raise SchedulerError(f"{error}{advice and f'; {advice}'}") from error
    return _note_begun(run, folder)


def note_forgotten(run: RunDir) -> None:
    """Note the arrays that Slurm took from a process which was killed before it could note them."""
    noted = {log.partition("/")[0] for line in run.submissions() for task in line["tasks"] for log in task["logs"]}
    with reading(run.logs):
        names = os.listdir(run.logs) if run.logs.is_dir() else []
    for name in sorted(filter(str.isdigit, names)):
        if name not in noted and is_there(run.logs / name / BEGUN):
            for task in _note_begun(run, run.logs / name)[:1]:
                log.info("array %s was submitted for this run, and is noted now", number_of(task))


def _note_begun(run: RunDir, folder: Path) -> List[ArrayTask]:
    """Note the array that a folder of logs is of, as submitit left its script there; [] if Slurm did not take it."""
    with reading(folder):
        scripts = [name for name in os.listdir(folder) if SCRIPT.fullmatch(name)]
        if not scripts:
            return []
        begun = json.loads((folder / BEGUN).read_bytes())
        text = (folder / scripts[0]).read_text(encoding="utf-8")
    job, elements = scripts[0].partition("_")[0], [tuple(element) for element in begun["elements"]]
    ids = [job] if len(elements) == 1 else [f"{job}_{number}" for number in range(len(elements))]
    tasks = [_array_task(folder.name, *each, begun["cards"]) for each in zip(ids, elements)]
    note(run, "slurm", tasks, text, begun["kind"])
    return tasks


def after_steps(spec: JobSpec) -> List[str]:
    """The commands behind the last picture, in the order in which each can use what the one before left."""
    return [*(step for step in POST_STEPS if step in spec.post), *(["notify"] if spec.webhook else [])]


def log_folder(run: RunDir) -> Path:
    """A new folder below logs/ for what the next submission leaves: none has more than one array's files."""
    number = len(run.submissions())
    with naming(run.logs):
        run.logs.mkdir(parents=True, exist_ok=True)
        while True:
            number += 1
            with contextlib.suppress(FileExistsError):
                folder = run.logs / f"{number:03}"
                folder.mkdir()
                return folder


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
    task = ArrayTask(f"local-{os.getpid()}", tuple(shards), tuple(path.name for path in logs))
    note(run, "local", [task], "", dataclasses.asdict(kind_of(settings)))
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


def note(
    run: RunDir, scheduler: str, tasks: Sequence[ArrayTask], script: str, kind: Optional[Mapping[str, object]] = None
) -> None:
    """Keep what was submitted, with the exact script, and the kind of card that it works on."""
    submitted = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    described = [dataclasses.asdict(task) for task in tasks]
    of_cards = {} if kind is None else {"kind": kind}
    run.add_submission(
        {"submitted": submitted, "scheduler": scheduler, "tasks": described, "script": script, **of_cards}
    )
