"""Commands that steer a run under way: pause, cancel, retry."""

from __future__ import annotations

import argparse
import logging
from typing import TYPE_CHECKING

from jobs.commands.common import add_command, counted, of_run, typed, with_settings
from ldm.errors import RunError

if TYPE_CHECKING:
    from jobs.commands.common import Subparsers

log = logging.getLogger(__name__)


def add(commands: Subparsers) -> None:
    of_run(add_command(commands, "pause", pause, "have the workers end between batches; resume goes on"))
    of_run(add_command(commands, "cancel", cancel, "end the run's jobs that run or wait, and its processes here"))
    again = with_settings(of_run(add_command(commands, "retry", retry, "try failed pictures again, from the first")))
    again.add_argument(
        "--failed", action="store_true", help="said for clarity: it is the failed pictures that are tried"
    )


def pause(options: argparse.Namespace) -> int:
    from jobs.rundir import RunDir
    from jobs.submit.steer import pause as pause_run

    run = RunDir(options.subject)
    run.info()
    print("paused: workers end between batches" if pause_run(run) else "the run is paused already")
    print(f"python -m jobs resume {typed(run.path)} goes on")
    return 0


def cancel(options: argparse.Namespace) -> int:
    from jobs.rundir import RunDir
    from jobs.submit.steer import cancel as cancel_run

    run = RunDir(options.subject)
    run.info()
    ended = cancel_run(run)
    if ended.jobs:
        jobs = f"{counted(len(ended.jobs), 'job')} with {counted(ended.tasks, 'task')}"
        print(f"cancelled {jobs} in the queue: {' '.join(ended.jobs)}")
    if ended.processes:
        print(f"told {counted(len(ended.processes), 'worker')} here to stop: {' '.join(map(str, ended.processes))}")
    for job in ended.spared:
        print(f"job {job} works on this run and is more than it, so it was left alone: scancel {job} ends all of it")
    if not (ended.jobs or ended.processes or ended.spared):
        print("nothing of this run is in the queue or at work here")
    return 0


def retry(options: argparse.Namespace) -> int:
    from jobs.cluster.queue import busy_shards, live_jobs, patient
    from jobs.commands.making import start
    from jobs.config import read_settings
    from jobs.rundir import RunDir
    from jobs.submit.steer import failed_shards, forget_failures, unpause

    run = RunDir(options.subject)
    info = run.info()
    settings = read_settings(options.settings, info.settings)
    failed = failed_shards(run, info)
    if not failed:
        print(f"no picture has failed; python -m jobs resume {typed(run.path)} makes what is missing")
        return 0
    busy = failed & busy_shards(run, live_jobs(run, patient))
    if busy and busy == failed:
        raise RunError(
            "workers are at the shards with failed pictures; wait until they are done, or end them with "
            f"python -m jobs cancel {typed(run.path)}, and retry then"
        )
    forgotten = forget_failures(run, info, busy)
    left = f"; those of {counted(len(busy), 'shard')} that workers are at are left to them" if busy else ""
    log.info("%s may be tried again%s", counted(forgotten, "failed picture"), left)
    unpause(run)
    return start(run, info, settings, options.main)
