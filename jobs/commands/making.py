"""Commands that make pictures: plan, probe, submit, resume, render, work."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, List, Sequence, Tuple

from jobs.commands.common import add_command, counted, of_prompts, of_run, shown, typed, with_settings
from ldm.errors import ConfigError, GenerationError, RunError

if TYPE_CHECKING:
    from jobs.commands.common import Main, Subparsers
    from jobs.config import Settings
    from jobs.rundir import RunDir, RunInfo
    from jobs.submit.prepare import Prepared

log = logging.getLogger(__name__)


def add(commands: Subparsers) -> None:
    of_prompts(add_command(commands, "plan", plan, "plan the prompts, start nothing, and print the run folder"))
    of_prompts(add_command(commands, "probe", probe, "make a few pictures, to know how long all of them will take"))
    of_prompts(add_command(commands, "submit", submit, "plan the prompts and start the workers"))
    with_settings(of_run(add_command(commands, "resume", resume, "start workers for what a run still misses")))
    rendered = add_command(commands, "render", render, "print a plain sbatch file that does the same")
    of_prompts(rendered, "PROMPTS|RUN")
    rendered.add_argument("--portal", action="store_true", help="print what a platform's web form asks instead")
    worker = add_command(commands, "work", work, "make pictures here: in a job, or by srun in an salloc")
    with_settings(of_run(worker))
    worker.add_argument("--shard", metavar="N", help="only these shards, as 3 or 0-3,7")
    worker.add_argument("--part", metavar="K/N", default="0/1", help="only one of N parts of them, K from 0")
    with_settings(of_run(add_command(commands, "notify", notify, "tell the webhook of a run how it stands")))


def run_in_job(main: Main, words: List[str]) -> None:
    """What a job calls: `main`, whose exit status becomes that of the job.

    A warning that comes before the worker listens would be submitit's, which takes it for a timeout and gives up.
    """
    from jobs.worker.stop import WARNINGS
    from jobs.worker.work import AGAIN

    logging.getLogger("submitit").propagate = False  # it writes its lines itself
    for number in WARNINGS:
        signal.signal(number, lambda *_: sys.exit(AGAIN))
    status = main(words)
    if status:
        sys.exit(status)


def plan(options: argparse.Namespace) -> int:
    prepared, _ = _prepare(options)
    print(shown(prepared.run.path))
    return 0


def submit(options: argparse.Namespace) -> int:
    prepared, settings = _prepare(options)
    return start(prepared.run, prepared.info, settings, options.main)


def probe(options: argparse.Namespace) -> int:
    from jobs.config import read_settings
    from jobs.submit.probe import probe as measure

    for line in measure(options.subject, read_settings(options.settings), partial(run_in_job, options.main)):
        print(line)
    return 0


def resume(options: argparse.Namespace) -> int:
    from jobs.config import read_settings
    from jobs.rundir import RunDir
    from jobs.submit.prepare import warn_of_changed_profile, warn_of_changed_prompts
    from jobs.submit.steer import unpause

    run = RunDir(options.subject)
    info = run.info()
    settings = read_settings(options.settings, info.settings)
    warn_of_changed_prompts(info)
    if not any(word.startswith("cluster=") for word in options.settings):
        warn_of_changed_profile(run, info)
    if unpause(run):
        log.info("the run is no longer paused")
    return start(run, info, settings, options.main)


def render(options: argparse.Namespace) -> int:
    from jobs.config import read_settings
    from jobs.reading import reading
    from jobs.rundir import RunDir
    from jobs.submit.launch import missing_shards
    from jobs.submit.order import parts_of
    from jobs.submit.portal import portal_text
    from jobs.submit.sbatch import render as rendered
    from jobs.submit.sbatch import warn_of_own_folder

    with reading(options.subject):
        is_run = options.subject.is_dir()
    if is_run:
        run = RunDir(options.subject)
        info = run.info()
        settings = read_settings(options.settings, info.settings)
    else:
        prepared, settings = _prepare(options)
        run, info = prepared.run, prepared.info
    if settings.profile.scheduler != "slurm":
        raise ConfigError(f"cluster {settings.spec.cluster!r} has no Slurm to render a job for; give cluster=NAME")
    shards = missing_shards(run, info)
    if not shards:
        raise RunError(f"nothing is missing in {run.path}, so there is nothing to submit")
    unasked = [f"{name}=" for name in ("post", "webhook", "links") if getattr(settings.spec, name)]
    if unasked:
        log.warning("%s is left out: only submit starts jobs behind others", ", ".join(unasked))
    warn_of_own_folder(run)
    if options.portal:
        sys.stdout.write(portal_text(run, settings, shards))
    else:
        sys.stdout.write(rendered(run, settings, shards, parts_of(run, info, settings)))
    return 0


def work(options: argparse.Namespace) -> int:
    from jobs.plan import parse_ranges
    from jobs.rundir import RunDir
    from jobs.worker.place import parse_part
    from jobs.worker.work import work as work_on

    shards = parse_ranges(options.shard) if options.shard else None
    return work_on(RunDir(options.subject), options.settings, shards=shards, part=parse_part(options.part))


def notify(options: argparse.Namespace) -> int:
    from jobs.config import read_settings
    from jobs.rundir import RunDir
    from jobs.state.notify import notify as tell
    from jobs.state.notify import summary_of
    from jobs.state.report import make_report

    run = RunDir(options.subject)
    info = run.info()
    url = read_settings(options.settings, info.settings).spec.webhook
    if url is None:
        raise ConfigError("there is nobody to tell: give webhook=URL")
    tell(url, summary_of(run, make_report(run, info)))
    return 0


def _prepare(options: argparse.Namespace) -> Tuple[Prepared, Settings]:
    from jobs.cluster.profiles import check_profile
    from jobs.config import read_settings
    from jobs.submit.prepare import prepare_run

    settings = read_settings(options.settings)
    check_profile(settings)
    prepared = prepare_run(options.subject, settings)
    begun, planned = "resuming" if prepared.resumed else "planned", prepared.info.plan
    size = f"{counted(planned.images, 'picture')} in {counted(planned.shards, 'shard')}"
    log.info("%s: %s (%s)", begun, shown(prepared.run.path), size)
    return prepared, settings


def start(run: RunDir, info: RunInfo, settings: Settings, main: Main) -> int:
    """Start workers for what the run misses: jobs, which are left to themselves, or processes here, which are not."""
    from jobs.cluster.queue import busy_shards
    from jobs.state.progress import Progress
    from jobs.submit.after import after_here
    from jobs.submit.launch import missing_shards, run_here, sweep_run
    from jobs.worker.work import AGAIN, TOLD

    shards = missing_shards(run, info)
    if not shards:
        log.info("nothing is missing")
        sweep_run(run)
        return max(_finish(run, info), _after(run, settings, main))
    if run.pause_path.exists():
        raise RunError(f"the run is paused; python -m jobs resume {typed(run.path)} goes on")
    if settings.profile.scheduler == "slurm":
        return _submit(run, info, settings, shards, main)
    free = sorted(set(shards) - busy_shards(run, {}))
    if not free:
        print(f"nothing to start: processes here are at what is missing; python -m jobs watch {typed(run.path)}")
        return 0
    with Progress(run, info) as progress:
        status = run_here(run, settings, free, progress.show)
    finished = _finish(run, info)
    if status in (AGAIN, TOLD) or run.pause_path.exists():
        return max(status, finished)  # nothing comes behind the last picture yet
    return max(status, finished, after_here(run, settings.spec, main))


def _submit(run: RunDir, info: RunInfo, settings: Settings, shards: Sequence[int], main: Main) -> int:
    from jobs.cluster.queue import busy_shards
    from jobs.submit.after import follow, is_after
    from jobs.submit.launch import note_forgotten, number_of, submit_to_slurm
    from jobs.submit.order import forecast, jobs_in_queue, place_order

    note_forgotten(run)
    asked = time.time()
    live = jobs_in_queue(run)
    busy = busy_shards(run, live)
    free = [shard for shard in shards if shard not in busy]
    at_work = {state.job for state in (live or {}).values() if not is_after(run, state)}
    jobs = f"job{'s' if len(at_work) > 1 else ''} {', '.join(sorted(at_work))}"
    where = jobs if at_work else "workers that still are at it"
    numbers: List[str] = []
    lines: List[str] = []
    if not free:
        print(
            f"nothing to submit: {where} will make what is missing; python -m jobs cancel {typed(run.path)} ends that"
        )
    else:
        if len(free) < len(shards):
            log.info("%d of %d shards are left to %s", len(shards) - len(free), len(shards), where)
        order = place_order(run, info, settings, free, live, asked)
        lines = forecast(run, info, settings, order)
        tasks = submit_to_slurm(run, settings, order, partial(run_in_job, main))
        numbers = list(dict.fromkeys(map(number_of, tasks)))
        links = f" in {order.links} links" if order.links > 1 else ""
        print(f"submitted {counted(len(tasks) // order.links, 'task')}{links}: {' '.join(numbers)}")
    print(f"python -m jobs status {typed(run.path)}")
    if lines:
        print("\n".join(lines))
    follow(run, settings, live, numbers)
    return 0


def _after(run: RunDir, settings: Settings, main: Main) -> int:
    """Do, or have done, what comes behind the last picture of a run of which nothing is missing."""
    from jobs.submit.after import after_here, follow
    from jobs.submit.launch import after_steps
    from jobs.submit.order import jobs_in_queue

    if settings.profile.scheduler != "slurm":
        return after_here(run, settings.spec, main)
    if after_steps(settings.spec):
        follow(run, settings, jobs_in_queue(run), whole=True)
    return 0


def _finish(run: RunDir, info: RunInfo) -> int:
    """Say what became of the run; a status that is not 0 if pictures are missing or failed."""
    from jobs.pages.grid import make_sheet
    from jobs.state.report import format_report, make_report

    report = make_report(run, info)
    print("\n".join(format_report(report)))
    sheet = make_sheet(run, info)
    if sheet is not None:
        print(f"pictures: {shown(run.path / 'samples')}")
        print(f"grid:     {shown(sheet)}")
    return GenerationError.exit_code if report.failed or report.missing else 0
