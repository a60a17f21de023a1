"""python -m jobs COMMAND: the terminal's side. A command imports what it needs, so that --help is quick."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from typing import Sequence

from jobs.commands import keeping, making, seeing, site, steering
from ldm.errors import SdbatchError

DESCRIPTION = "A file of prompts and an allocation in; every picture exactly once out."


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
    except BrokenPipeError:  # whoever read our output has seen enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - Python flushes it once more at its end
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        print("jobs: interrupted; the same command goes on with what is missing", file=sys.stderr)
        return 130


def _parse(words: Sequence[str]) -> argparse.Namespace:
    """argparse gives up on key=value words behind an option; they are settings wherever they stand."""
    parser = argparse.ArgumentParser(prog="python -m jobs", description=DESCRIPTION)
    parser.set_defaults(main=main)  # a command may run others: in a job, or behind the last picture
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.required = True
    for group in (making, seeing, steering, keeping, site):
        group.add(commands)
    options, others = parser.parse_known_args(words)
    strange = [word for word in others if word.startswith("-") or not hasattr(options, "settings")]
    if strange:
        parser.error(f"unrecognized arguments: {' '.join(strange)}")
    if others:
        options.settings += others
    return options
