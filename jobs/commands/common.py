"""What the commands share: how they are added to the parser, and how they show a path or a number."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Sequence

from ldm.errors import ConfigError

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

Run = Callable[[argparse.Namespace], int]
Main = Callable[[Sequence[str]], int]  # the words behind "python -m jobs" in, the exit status out

SETTINGS = (
    "any setting, as steps=30 or cluster.partition=x; cluster=NAME chooses a profile, job=FILE reads a job file; all "
    "of them are in configs/jobs/example.yaml"
)
PROMPTS = "one prompt a line (.txt), or one JSON object of request fields a line (.jsonl)"
RUN = "a run folder"


def add_command(commands: Subparsers, name: str, run: Run, help: str) -> argparse.ArgumentParser:
    """A command with its one line of help; `run` gets the parsed options and returns the exit status."""
    command = commands.add_parser(name, help=help, description=help)
    command.set_defaults(run=run)
    return command


def of_prompts(command: argparse.ArgumentParser, metavar: str = "PROMPTS") -> argparse.ArgumentParser:
    """The command takes a prompts file, as `subject`, and settings."""
    command.add_argument("subject", metavar=metavar, type=Path, help=PROMPTS)
    return with_settings(command)


def of_run(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The command takes a run folder, as `subject`."""
    command.add_argument("subject", metavar="RUN", type=Path, help=RUN)
    return command


def with_settings(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The command takes key=value words, as `settings`."""
    command.add_argument("settings", metavar="KEY=VALUE", nargs="*", help=SETTINGS)
    return command


def check_at_least_one(flag: str, value: int) -> None:
    """Refuse an option's number below 1."""
    if value < 1:
        raise ConfigError(f"{flag} must be at least 1, got {value}")


def counted(number: int, noun: str) -> str:
    """1 task, 2 tasks."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def typed(path: Path) -> str:
    """The path as a word of a command line."""
    return shlex.quote(str(shown(path)))


def shown(path: Path) -> Path:
    """The path as one would type it from here."""
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path
