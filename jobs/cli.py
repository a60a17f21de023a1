"""python -m jobs COMMAND: the terminal's side. A command imports what it needs, so that --help is quick."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from pathlib import Path
from typing import List, Sequence, Tuple

from jobs.config import Settings, read_settings
from jobs.launch import missing_shards
from jobs.prepare import Prepared, prepare_run
from jobs.progress import Progress
from jobs.reading import reading
from jobs.rundir import RunDir, RunInfo
from ldm.errors import ConfigError, GenerationError, RunError, SdbatchError

log = logging.getLogger(__name__)

DESCRIPTION = "A file of prompts and an allocation in; every picture exactly once out."
DOCTOR = "look whether what a run under these settings needs is here: packages, weights, Slurm's partition and cards"
SETTINGS = "any setting, as steps=30 or cluster.partition=x; cluster=NAME chooses a profile, job=FILE reads a job file"


def main(words: Sequence[str]) -> int:
    """Run one command; the exit status. An error that a user can put right is one line on stderr."""
    options = _parse(words)
    timed = "%(asctime)s " if options.command == "work" else "jobs: "
    logging.basicConfig(level=logging.INFO, format=f"{timed}%(message)s", stream=sys.stderr)
    try:
        return int(options.run(options))
    except SdbatchError as error:
        print(f"jobs: error: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("jobs: interrupted; the same command goes on with what is missing", file=sys.stderr)
        return 130


def run_in_job(words: List[str]) -> None:
    """What a job calls: the command, whose exit status becomes that of the job."""
    status = main(words)
    if status:
        sys.exit(status)


def _parse(words: Sequence[str]) -> argparse.Namespace:
    """argparse gives up on key=value words behind an option; they are settings wherever they stand."""
    parser = _parser()
    options, others = parser.parse_known_args(words)
    strange = [word for word in others if word.startswith("-") or not hasattr(options, "settings")]
    if strange:
        parser.error(f"unrecognized arguments: {' '.join(strange)}")
    if others:
        options.settings += others
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m jobs", description=DESCRIPTION)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.required = True

    def add(name: str, run: object, help: str, subject: str, subject_help: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help, description=help)
        command.add_argument("subject", metavar=subject, type=Path, help=subject_help)
        command.set_defaults(run=run)
        return command

    prompts = "one prompt a line (.txt), or one JSON object of request fields a line (.jsonl)"
    run_help = "a run folder"
    plan = add("plan", _plan, "plan the prompts, start nothing, and print the run folder", "PROMPTS", prompts)
    submit = add("submit", _submit, "plan the prompts and start the workers", "PROMPTS", prompts)
    resume = add("resume", _resume, "start workers for what a run still misses", "RUN", run_help)
    render = add("render", _render, "print a plain sbatch file that does the same", "PROMPTS|RUN", prompts)
    work = add("work", _work, "make pictures here: in a job, or by srun in an salloc", "RUN", run_help)
    for command in (plan, submit, resume, render, work):
        command.add_argument("settings", metavar="KEY=VALUE", nargs="*", help=SETTINGS)
    work.add_argument("--shard", metavar="N", help="only these shards, as 3 or 0-3,7")
    work.add_argument("--part", metavar="K/N", default="0/1", help="only one of N parts of them, K from 0")
    add("status", _status, "count what is done, flagged, failed and missing", "RUN", run_help)
    doctor = commands.add_parser("doctor", help="look whether everything is here", description=DOCTOR)
    doctor.add_argument("settings", metavar="KEY=VALUE", nargs="*", help=SETTINGS)
    doctor.set_defaults(run=_doctor)
    add("grid", _grid, "make a contact sheet of the first pictures", "RUN", run_help)
    return parser


def _plan(options: argparse.Namespace) -> int:
    prepared, _ = _prepare(options)
    print(_shown(prepared.run.path))
    return 0


def _submit(options: argparse.Namespace) -> int:
    prepared, settings = _prepare(options)
    return _start(prepared.run, prepared.info, settings)


def _resume(options: argparse.Namespace) -> int:
    run = RunDir(options.subject)
    info = run.info()
    return _start(run, info, read_settings(options.settings, info.settings))


def _render(options: argparse.Namespace) -> int:
    from jobs.sbatch import render

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
    sys.stdout.write(render(run, settings, shards, info.plan.shards))
    return 0


def _work(options: argparse.Namespace) -> int:
    from jobs.place import parse_part
    from jobs.plan import parse_ranges
    from jobs.work import work

    shards = parse_ranges(options.shard) if options.shard else None
    return work(RunDir(options.subject), options.settings, shards=shards, part=parse_part(options.part))


def _status(options: argparse.Namespace) -> int:
    from jobs.report import format_report, make_report

    run = RunDir(options.subject)
    print("\n".join(format_report(make_report(run, run.info()))))
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from jobs.doctor import Verdict, examine

    findings = examine(read_settings(options.settings))
    print("\n".join(map(str, findings)))
    return ConfigError.exit_code if any(finding.verdict is Verdict.FAIL for finding in findings) else 0


def _grid(options: argparse.Namespace) -> int:
    from jobs.grid import make_sheet

    run = RunDir(options.subject)
    sheet = make_sheet(run, run.info())
    if sheet is None:
        raise RunError(f"{run.path} has no picture yet")
    print(_shown(sheet))
    return 0


def _prepare(options: argparse.Namespace) -> Tuple[Prepared, Settings]:
    settings = read_settings(options.settings)
    prepared = prepare_run(options.subject, settings)
    begun, plan = "resuming" if prepared.resumed else "planned", prepared.info.plan
    size = f"{_counted(plan.images, 'picture')} in {_counted(plan.shards, 'shard')}"
    log.info("%s: %s (%s)", begun, _shown(prepared.run.path), size)
    return prepared, settings


def _start(run: RunDir, info: RunInfo, settings: Settings) -> int:
    from jobs.launch import run_here, submit_to_slurm

    shards = missing_shards(run, info)
    if not shards:
        log.info("nothing is missing")
        return _finish(run, info)
    if settings.profile.scheduler == "slurm":
        tasks = submit_to_slurm(run, settings, shards, run_in_job)
        jobs = dict.fromkeys(task.job.split("_")[0] for task in tasks)
        print(f"submitted {_counted(len(tasks), 'task')}: {' '.join(jobs)}")
        print(f"python -m jobs status {shlex.quote(str(_shown(run.path)))}")
        return 0
    with Progress(run, info) as progress:
        status = run_here(run, settings, shards, progress.show)
    finished = _finish(run, info)
    return status or finished


def _finish(run: RunDir, info: RunInfo) -> int:
    """Say what became of the run; a status that is not 0 if pictures are missing or failed."""
    from jobs.grid import make_sheet
    from jobs.report import format_report, make_report

    report = make_report(run, info)
    print("\n".join(format_report(report)))
    sheet = make_sheet(run, info)
    if sheet is not None:
        print(f"pictures: {_shown(run.path / 'samples')}")
        print(f"grid:     {_shown(sheet)}")
    return GenerationError.exit_code if report.failed or report.missing else 0


def _counted(number: int, noun: str) -> str:
    """1 task, 2 tasks."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _shown(path: Path) -> Path:
    """The path as one would type it from here."""
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path
