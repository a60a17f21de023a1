"""Commands that look after a run that was made: verify, pack."""

from __future__ import annotations

import argparse
import shlex
from typing import TYPE_CHECKING

from jobs.commands.common import add_command, check_at_least_one, counted, of_run, shown
from ldm.errors import GenerationError

if TYPE_CHECKING:
    from jobs.commands.common import Subparsers

PROBLEMS_SHOWN = 20


def add(commands: Subparsers) -> None:
    proving = of_run(add_command(commands, "verify", verify, "prove that every picture is there, once, as planned"))
    proving.add_argument("--processes", metavar="N", type=int, default=1, help="look at N shards at a time")
    of_run(add_command(commands, "pack", pack, "put the pictures of each complete shard into a tar, for webdataset"))


def verify(options: argparse.Namespace) -> int:
    from jobs.proof.findings import format_findings
    from jobs.proof.verify import verify_run
    from jobs.rundir import RunDir

    check_at_least_one("--processes", options.processes)
    run = RunDir(options.subject)
    info = run.info()
    findings = verify_run(run, info, options.processes)
    name = shlex.quote(str(shown(run.path)))
    print("\n".join(format_findings(findings, info.plan.images, name, PROBLEMS_SHOWN)))
    return 0 if findings.whole else GenerationError.exit_code


def pack(options: argparse.Namespace) -> int:
    from jobs.rundir import RunDir
    from jobs.storage.pack import pack_run

    run = RunDir(options.subject)
    info = run.info()
    incomplete = pack_run(run, info)
    print(
        f"{counted(info.plan.shards - len(incomplete), 'shard')} of {info.plan.shards} packed in {shown(run.samples)}"
    )
    if incomplete:
        name = shlex.quote(str(shown(run.path)))
        print(f"{counted(len(incomplete), 'shard')} not complete yet: python -m jobs resume {name}, then pack again")
    return GenerationError.exit_code if incomplete else 0
