"""Commands that look at a run: status, grid."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from jobs.commands.common import add_command, of_run, shown
from ldm.errors import RunError

if TYPE_CHECKING:
    from jobs.commands.common import Subparsers


def add(commands: Subparsers) -> None:
    of_run(add_command(commands, "status", status, "count what is done, flagged, failed and missing"))
    of_run(add_command(commands, "grid", grid, "make a contact sheet of the first pictures"))


def status(options: argparse.Namespace) -> int:
    from jobs.report import format_report, make_report
    from jobs.rundir import RunDir

    run = RunDir(options.subject)
    print("\n".join(format_report(make_report(run, run.info()))))
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
