"""Commands about the site rather than a run: doctor."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from jobs.commands.common import with_settings
from ldm.errors import ConfigError

if TYPE_CHECKING:
    from jobs.commands.common import Subparsers

DOCTOR = "look whether what a run under these settings needs is here: packages, weights, Slurm's partition and cards"


def add(commands: Subparsers) -> None:
    examined = commands.add_parser("doctor", help="look whether everything is here", description=DOCTOR)
    with_settings(examined).set_defaults(run=doctor)


def doctor(options: argparse.Namespace) -> int:
    from jobs.config import read_settings
    from jobs.doctor import Verdict, examine

    findings = examine(read_settings(options.settings))
    print("\n".join(map(str, findings)))
    return ConfigError.exit_code if any(finding.verdict is Verdict.FAIL for finding in findings) else 0
