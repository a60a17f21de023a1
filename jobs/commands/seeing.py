"""Commands that look at a run: status, watch, logs, grid."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from jobs.commands.common import add_command, of_run, shown
from ldm.errors import ConfigError, GenerationError, RunError

if TYPE_CHECKING:
    from jobs.commands.common import Subparsers


def add(commands: Subparsers) -> None:
    seen = of_run(add_command(commands, "status", status, "say what is done, who is at work and where, what waits"))
    seen.add_argument("--json", action="store_true", help="print the same as JSON")
    watched = of_run(add_command(commands, "watch", watch, "show the status again and again until the run is over"))
    watched.add_argument("--every", metavar="S", type=float, default=5.0, help="seconds between looks (5)")
    logged = of_run(add_command(commands, "logs", logs, "show the last lines of the run's logs, newest first"))
    logged.add_argument("--failed", action="store_true", help="only why tasks did not finish, equal reasons together")
    logged.add_argument("--shard", metavar="N", type=int, help="only the logs of this shard")
    logged.add_argument("--lines", metavar="N", type=int, default=10, help="how many lines of each (10)")
    of_run(add_command(commands, "grid", grid, "make a contact sheet of the first pictures"))


def status(options: argparse.Namespace) -> int:
    from jobs.rundir import RunDir
    from jobs.status import make_status
    from jobs.status_text import format_status, to_json

    run = RunDir(options.subject)
    now = make_status(run, run.info())
    print(json.dumps(to_json(now), ensure_ascii=False, indent=2) if options.json else "\n".join(format_status(now)))
    return 0


def watch(options: argparse.Namespace) -> int:
    """The exit status is that of the finished run; 130 if the user leaves before."""
    from jobs.rundir import RunDir
    from jobs.watch import watch as look

    if not options.every > 0:
        raise ConfigError(f"--every must be above 0, got {options.every:g}")
    run = RunDir(options.subject)
    try:
        report = look(run, run.info(), sys.stdout, options.every).report
    except KeyboardInterrupt:
        return 130
    return GenerationError.exit_code if report.failed or report.missing else 0


def logs(options: argparse.Namespace) -> int:
    from jobs.attendance import read_attendances
    from jobs.logs import describe_logs, rendered_logs, task_logs
    from jobs.rundir import RunDir
    from jobs.status import why_unfinished

    if options.lines < 1:
        raise ConfigError(f"--lines must be at least 1, got {options.lines}")
    run = RunDir(options.subject)
    info = run.info()
    attendances = read_attendances(run.workers)
    found = task_logs(run, attendances)
    found += rendered_logs(run, found)
    if options.shard is not None:
        found = [log for log in found if options.shard in log.shards]
    if options.failed:
        lines = why_unfinished(run, info, found, attendances) or ["no task that has ended has left work undone"]
    else:
        lines = describe_logs(found, options.lines) or ["there is no log yet"]
    print("\n".join(lines))
    return 0


def grid(options: argparse.Namespace) -> int:
    from jobs.grid import make_sheet
    from jobs.rundir import RunDir

    run = RunDir(options.subject)
    sheet = make_sheet(run, run.info())
    if sheet is None:
        raise RunError(f"{run.path} has no picture yet")
    print(shown(sheet))
    return 0
