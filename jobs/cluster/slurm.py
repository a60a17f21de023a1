"""Slurm's commands and what they print: the one module that talks to the scheduler.

Submitting goes through submitit, with its traps closed: no wckey, no variable of an enclosing allocation in the job, an
absolute interpreter, and a function that the job finds by its module, wherever it runs.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import random
import re
import subprocess
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from jobs.plan import parse_ranges
from ldm.errors import ConfigError, OutputError, SchedulerError
from ldm.inference.cards import CUDA, HIP, ROCR

log = logging.getLogger(__name__)

RunCommand = Callable[[Sequence[str]], str]

COMMAND_SECONDS, FORECAST_SECONDS = 60, 10
# A controller that hundreds of tasks ask at once answers some of them late: how long to wait before each further try.
RETRY_SECONDS = (2.0, 10.0, 30.0)
KEPT_VARIABLES = ("SLURM_CONF",)
CARD_VARIABLES = (HIP, CUDA, ROCR, "GPU_DEVICE_ORDINAL", "ZE_AFFINITY_MASK")
CARD_LINE = re.compile(r"\bNodes=(\S+) .*?\bGRES(?:_IDX)?=(\S+)")
RESOURCE = re.compile(r"([^\s,()]+)\(IDX:([0-9,-]+)\)")
END_TIME = re.compile(r"\bEndTime=(\d\S+)")
GIVEN = re.compile(r"\b(?:GRES|GRES_IDX|Gres|TresPerNode)=(?!\(null\))(\S+)")
# What submitit counts with, so that it wants them as numbers of its own; and what it writes whatever one says.
COUNTED_DIRECTIVES = ("nodes", "ntasks-per-node", "time")
FIXED_DIRECTIVES = (*COUNTED_DIRECTIVES, "open-mode", "output", "signal")


class NotInstalledError(SchedulerError):
    """A command of Slurm is not on this machine."""


def run_command(command: Sequence[str]) -> str:
    """What a scheduler's command prints; SchedulerError with its own words if it fails or is not here."""
    return _completed(command).stdout.decode("utf-8", "replace")


def expected_start(directives: Mapping[str, str]) -> Optional[str]:
    """When Slurm expects a job of these directives to begin, as it writes a time; None if it does not say."""
    flags = [f"--{key}={value}" if value else f"--{key}" for key, value in directives.items()]
    try:
        with outside_any_job():
            said = _completed(["sbatch", "--test-only", *flags, "--wrap=true"], FORECAST_SECONDS).stderr
    except SchedulerError:
        return None
    found = re.search(r"to start at (\S+)", said.decode("utf-8", "replace"))
    return found.group(1) if found else None


def _completed(command: Sequence[str], seconds: Optional[float] = None) -> subprocess.CompletedProcess[bytes]:
    try:
        # With Python's own SIGPIPE, which is ignored, a command that munge hung up on, as it does on one that a busy
        # machine leaves without processor for 2 s, tries again; with the usual one it would die without a word.
        done = subprocess.run(
            list(command), capture_output=True, timeout=seconds or COMMAND_SECONDS, check=False, restore_signals=False
        )
    except FileNotFoundError as error:
        raise NotInstalledError(f"{command[0]} is not here: load the site's Slurm, or use cluster=local") from error
    except subprocess.TimeoutExpired as error:
        raise SchedulerError(f"{command[0]} gave no answer within {seconds or COMMAND_SECONDS} s") from error
    if done.returncode:
        raise SchedulerError(f"{' '.join(command)}: {' '.join(done.stderr.decode('utf-8', 'replace').split())}")
    return done


def allocated_cards(
    environ: Mapping[str, str], gres: Optional[str] = None, run: RunCommand = run_command
) -> Optional[List[str]]:
    """The numbers of the cards, `gres` if there are others, that Slurm gave this job on this node; None: not said.

    A generic GRES such as `dcu` sets no variable; the controller alone knows which cards are the job's. One that never
    answers is a SchedulerError: to count from 0 could take the cards of another job.
    """
    node, job = environ.get("SLURMD_NODENAME"), job_of(environ)
    if not node or not job:
        return None
    try:
        text = _insist(run, ["scontrol", "show", "job", "-d", job])
        for nodes, cards in parse_card_lines(text, gres):
            if node in _insist(run, ["scontrol", "show", "hostnames", nodes]).split():
                return cards
        given = GIVEN.search(text)
        if given:
            log.warning("Slurm gave this job %s and no numbers of its cards on %s, so they are counted from 0; name "
                        "them with %s=0,1 if others use this node", given.group(1), node, HIP)  # fmt: skip
    except NotInstalledError as error:
        log.warning("Slurm does not say which cards are this job's, so they are counted from 0: %s", error)
    except SchedulerError as error:
        raise SchedulerError(
            f"cannot learn which cards are this job's: {error}; name them with {HIP}=0,1 or say device=cpu"
        ) from error
    return None


def job_end(environ: Mapping[str, str], run: RunCommand = run_command) -> Optional[float]:
    """When Slurm will end this job, in seconds since 1970; None outside a job, without a limit, or if it does not say.

    A limit that is changed later stays unknown: the signals of the scheduler are there for that.
    """
    job = job_of(environ)
    if job is None:
        return None
    if environ.get("SLURM_JOB_END_TIME", "").isdigit():
        return float(environ["SLURM_JOB_END_TIME"])
    try:
        found = END_TIME.search(_insist(run, ["scontrol", "show", "job", "-d", job]))
    except SchedulerError as error:
        log.warning("the end of this job's time is not known: %s", error)
        return None
    return _timestamp(found.group(1)) if found else None


def _timestamp(text: str) -> float:
    """Local time as Slurm writes it, in seconds since 1970; of an hour that a clock shows twice, the one to come."""
    then = datetime.datetime.strptime(text, "%Y-%m-%dT%H:%M:%S")
    first = then.timestamp()
    return first if first > time.time() else then.replace(fold=1).timestamp()


def remembering(run: RunCommand) -> RunCommand:
    """`run` that gives a command again only where it failed, so that each process asks the controller once."""
    answers: Dict[Tuple[str, ...], str] = {}

    def ask(command: Sequence[str]) -> str:
        if tuple(command) not in answers:
            answers[tuple(command)] = run(command)
        return answers[tuple(command)]

    return ask


def _insist(run: RunCommand, command: Sequence[str]) -> str:
    for seconds in RETRY_SECONDS:
        try:
            return run(command)
        except NotInstalledError:
            raise
        except SchedulerError as error:
            log.warning("trying again in about %.0f s: %s", seconds, error)
            time.sleep(seconds * random.uniform(0.5, 1.5))  # not all of an array at once
    return run(command)


def job_of(environ: Mapping[str, str]) -> Optional[str]:
    """The job of this process as scontrol takes it. An array's last task has the number of the whole array, of which
    the controller would tell everything.
    """
    job, array = environ.get("SLURM_JOB_ID"), environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{environ.get('SLURM_ARRAY_TASK_ID')}" if job is not None and job == array else job


def parse_card_lines(text: str, gres: Optional[str] = None) -> List[Tuple[str, List[str]]]:
    """The groups of nodes in `scontrol show job -d`, each with its cards, from lines such as
    `Nodes=dcu[1-2] CPU_IDs=0-7 Mem=16384 GRES=dcu:2(IDX:0,2-3)`, or `GRES_IDX=dcu(IDX:0,2-3)` of an older Slurm.

    Of several resources on a line the cards are those called `gres`, such as dcu or gpu:a100, else the first.
    """
    lines = [(nodes, RESOURCE.findall(given)) for nodes, given in CARD_LINE.findall(text)]
    return [(nodes, _numbers_of(resources, gres)) for nodes, resources in lines if resources]


def _numbers_of(resources: Sequence[Tuple[str, str]], gres: Optional[str]) -> List[str]:
    """The numbers of the resource that is called `gres`, else of the first."""
    asked = [numbers for name, numbers in resources if gres and f"{name}:".startswith(f"{gres}:")]
    return [str(card) for numbers in asked or [resources[0][1]] for card in parse_ranges(numbers)]


@contextlib.contextmanager
def outside_any_job() -> Iterator[None]:
    """No variable of an enclosing allocation, nor any choice of cards made out here, reaches what is submitted."""
    before = dict(os.environ)
    inside = "SLURM_JOB_ID" in before
    for name in before:
        leaks = inside and name.startswith(("SLURM_", "SBATCH_", "SRUN_")) and name not in KEPT_VARIABLES
        if leaks or name in CARD_VARIABLES:
            del os.environ[name]
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def submit_array(
    function: Callable[..., Any],
    arguments: Sequence[Tuple[Any, ...]],
    folder: Path,
    parameters: Dict[str, Any],
    python: str,
) -> List[str]:
    """Submit one array task for each tuple of arguments; the ids of the tasks, such as 12_0, or 12 for a single one."""
    run_command(["sbatch", "--version"])
    try:
        from submitit import SlurmExecutor
        from submitit.core.utils import FailedJobError, FailedSubmissionError
    except ImportError as error:
        raise SchedulerError(f"submitit is needed to submit, and cannot be imported: {error}") from error
    with outside_any_job():
        try:
            executor = SlurmExecutor(folder=folder, python=python)
            executor.update_parameters(**parameters)
            return [str(job.job_id) for job in executor.map_array(function, *zip(*arguments))]
        except OSError as error:
            raise OutputError(f"cannot write {error.filename or folder}: {error.strerror}; free some space") from error
        except (FailedJobError, FailedSubmissionError, RuntimeError) as error:
            raise SchedulerError(f"Slurm did not take the job: {' '.join(str(error).split())}") from error


def submitit_parameters(directives: Mapping[str, str], omit: Sequence[str]) -> Dict[str, Any]:
    """What submitit is to be told so that it writes these directives, without those that the site refuses."""
    fixed = [name for name in omit if name in FIXED_DIRECTIVES]
    if fixed:
        raise ConfigError(
            f"submitit always writes --{fixed[0]}; for a site that refuses it use `python -m jobs render`"
        )
    kept = {name: value for name, value in directives.items() if name not in omit}
    empty = [name for name in COUNTED_DIRECTIVES if not kept[name]]
    if empty or not kept["ntasks-per-node"].isdigit():
        name = empty[0] if empty else "ntasks-per-node"
        raise ConfigError(
            f"the directive {name} must be a number, got {kept[name]!r}; give cluster.directives.{name}=N"
        )
    # Where submitit wants a number, Slurm takes more, such as 01:30:00 or 1-2; what is additional wins over its own.
    counts = {name.replace("-", "_"): int(kept.pop(name)) for name in COUNTED_DIRECTIVES if kept[name].isdigit()}
    return {
        **counts,
        "job_name": kept.pop("job-name", None),
        "wckey": None,
        "stderr_to_stdout": True,
        "additional_parameters": {name: value or True for name, value in kept.items()},
    }
