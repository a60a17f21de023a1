"""What comes behind the last picture: pack, verify, report, and telling a webhook."""

from __future__ import annotations

import contextlib
import logging
import shlex
from typing import Callable, Dict, List, Optional, Sequence

from jobs.cluster.queue import JobState
from jobs.cluster.slurm import outside_any_job, run_command
from jobs.config import Settings
from jobs.rundir import RunDir
from jobs.spec import JobSpec
from jobs.submit.launch import ArrayTask, after_steps, log_folder, note
from jobs.submit.sbatch import render_after
from ldm.errors import SchedulerError
from ldm.inference.files import write_atomically

log = logging.getLogger(__name__)


def is_after(run: RunDir, state: JobState) -> bool:
    """Whether a job of the run is the one behind its pictures."""
    return state.name == run.name_after


def follow(
    run: RunDir, settings: Settings, live: Optional[Dict[str, JobState]], new: Sequence[str] = (), whole: bool = False
) -> Optional[str]:
    """Have what comes behind the last picture done once: by one job that begins when the run's own jobs in the queue,
    `live` and `new` ones, have ended; its number. None where nothing is to be done, a job in the queue will do it, or
    there is none to wait for and the run is not `whole`.

    One that waits for fewer jobs than there are now gives way to another.
    """
    steps = after_steps(settings.spec)
    there = {state.job: state for state in (live or {}).values() if is_after(run, state) and state.will_work}
    waiting = [job for job, state in there.items() if state.waiting]
    arrays = [state.job for state in (live or {}).values() if state.name == run.path.name and state.will_work]
    behind = list(dict.fromkeys([*arrays, *new]))
    if not steps or (there and not new) or not (behind or whole):
        return None
    job = _submit(run, settings, steps, behind)
    for older in waiting:
        with contextlib.suppress(SchedulerError):  # then the steps are done twice
            run_command(["scancel", "--quiet", older])
    return job


def _submit(run: RunDir, settings: Settings, steps: Sequence[str], jobs: Sequence[str]) -> str:
    """Submit one job of one core for `steps` that begins once `jobs` have ended, however; its number."""
    folder = log_folder(run)
    script = folder / "after.sbatch"
    dependency = f"afterany:{':'.join(jobs)}" if jobs else None
    text = render_after(run, settings, steps, dependency, folder / "after.log")
    write_atomically(script, text.encode("utf-8"))
    try:
        with outside_any_job():
            job = run_command(["sbatch", "--parsable", str(script)]).strip().partition(";")[0]
    except SchedulerError as error:
        raise SchedulerError(
            f"{', '.join(steps)} could not be submitted: {error}; the pictures are not concerned, and "
            f"python -m jobs resume {shlex.quote(str(run.path))} submits what comes behind them"
        ) from error
    note(run, "slurm", [ArrayTask(job, (), (f"{folder.name}/after.log",))], text)
    log.info("behind the last picture: %s, as job %s", ", ".join(steps), job)
    return job


def after_here(run: RunDir, spec: JobSpec, main: Callable[[List[str]], int]) -> int:
    """Do what comes behind the last picture in this process, each step a command for `main`; the worst exit status."""
    words: List[List[str]] = [[step, str(run.path)] for step in after_steps(spec) if step != "notify"]
    if spec.webhook:
        words.append(["notify", str(run.path), f"webhook={spec.webhook}"])
    return max((main(each) for each in words), default=0)
