"""Commands that look at a run: status, watch, logs, report, grid."""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Sequence

from jobs.commands.common import add_command, check_at_least_one, of_run, shown
from ldm.errors import ConfigError, GenerationError, RunError

if TYPE_CHECKING:
    from jobs.commands.common import Subparsers

log = logging.getLogger(__name__)


def add(commands: Subparsers) -> None:
    seen = of_run(add_command(commands, "status", status, "say what is done, who is at work and where, what waits"))
    seen.add_argument("--json", action="store_true", help="print the same as JSON")
    watched = of_run(add_command(commands, "watch", watch, "show the status again and again until the run is over"))
    watched.add_argument(
        "--every", metavar="S", type=float, default=15.0, help="seconds between looks, each of which asks squeue (15)"
    )
    logged = of_run(add_command(commands, "logs", logs, "show the last lines of the run's logs, newest first"))
    logged.add_argument("--failed", action="store_true", help="only why tasks did not finish, equal reasons together")
    logged.add_argument("--shard", metavar="N", type=int, help="only the logs of this shard")
    logged.add_argument("--lines", metavar="N", type=int, default=10, help="how many lines of each (10)")
    reported = of_run(add_command(commands, "report", report, "write report.html, report.json and contact sheets"))
    reported.add_argument("--pictures", metavar="N", type=int, default=2000, help="at most so many on the page (2000)")
    reported.add_argument("--clip-weights", metavar="FILE", type=Path, help="a CLIP to score these pictures by")
    gridded = of_run(add_command(commands, "grid", grid, "make contact sheets, with 64 pictures each"))
    gridded.add_argument("--sheets", metavar="N", type=int, default=32, help="at most so many (32)")


def status(options: argparse.Namespace) -> int:
    from jobs.rundir import RunDir
    from jobs.state.status import make_status
    from jobs.state.status_text import format_status, to_json

    run = RunDir(options.subject)
    now = make_status(run, run.info())
    print(json.dumps(to_json(now), ensure_ascii=False, indent=2) if options.json else "\n".join(format_status(now)))
    return 0


def watch(options: argparse.Namespace) -> int:
    """The exit status is that of the finished run; 130 if the user leaves before."""
    from jobs.rundir import RunDir
    from jobs.state.watch import watch as look

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
    from jobs.rundir import RunDir
    from jobs.state.logs import describe_logs, rendered_logs, task_logs
    from jobs.state.status import why_unfinished

    check_at_least_one("--lines", options.lines)
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


def report(options: argparse.Namespace) -> int:
    """The exit status is 0 however the run went: it is `status` and `verify` that judge."""
    from jobs.pages.grid import make_sheets
    from jobs.pages.html_report import write_report
    from jobs.rundir import RunDir
    from jobs.state.report import format_totals

    check_at_least_one("--pictures", options.pictures)
    run = RunDir(options.subject)
    info = run.info()
    clip = None
    if options.clip_weights is not None:
        from jobs.pages.clip_score import load_score

        clip = (options.clip_weights, load_score(options.clip_weights))
    written = write_report(run, info, options.pictures, clip, _tell)
    sheets = make_sheets(run, info)
    print("\n".join(format_totals(written.report)))
    if written.report.missing:
        print(f"the run is not finished, the report is of what is there; rerun: {_again(options.subject)}")
    if written.shown < written.found:
        print(f"shown are {written.shown} of {written.found} pictures, an even sample; --pictures N changes it")
    print(f"page:     {shown(written.html)} ({written.html.stat().st_size / 1e6:.1f} MB)")
    print(f"numbers:  {shown(written.json)}")
    for sheet in sheets[:1]:
        print(f"grid:     {shown(sheet)}{f' to {sheets[-1].name}' if len(sheets) > 1 else ''}")
    _say_if_some(sheets, written.report.done)
    return 0


def grid(options: argparse.Namespace) -> int:
    from jobs.pages.grid import make_sheets
    from jobs.rundir import RunDir
    from jobs.state.report import make_report

    check_at_least_one("--sheets", options.sheets)
    run = RunDir(options.subject)
    info = run.info()
    sheets = make_sheets(run, info, options.sheets)
    if not sheets:
        raise RunError(f"{run.path} has no picture yet")
    print("\n".join(str(shown(sheet)) for sheet in sheets))
    _say_if_some(sheets, make_report(run, info).done)
    return 0


def _again(run: Path) -> str:
    return f"python -m jobs report {shlex.quote(str(run))}"


def _tell(looked_at: int) -> None:
    if looked_at % 500 == 0:
        log.info("%d pictures looked at", looked_at)


def _say_if_some(sheets: Sequence[Path], pictures: int) -> None:
    from jobs.pages.grid import PICTURES

    if sheets and len(sheets) * PICTURES < pictures:
        log.info("the first %d of %d pictures are on sheets; python -m jobs grid RUN --sheets N makes more",
                 len(sheets) * PICTURES, pictures)  # fmt: skip
