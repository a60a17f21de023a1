"""The errors a user can meet, each with the exit code that a command ends with.

    SdbatchError
      RequestError      what is asked of one picture cannot be made: size, steps, strength, prompt file
      ConfigError       a YAML file or a key=value override does not say what it must
      WeightsError      a file of weights is missing, is something else, or does not fit the model
      DeviceError       the asked device or precision is not here
      OutputError       a result cannot be written: no permission, no space, a name already taken
      RunError          a run folder is missing, unreadable, or belongs to another plan
      SchedulerError    Slurm refused or cannot be reached
      GenerationError   the model gave something that is not a picture
      NoMemoryError     the memory of the card or the machine is too small for what was asked at once

A message says what must hold, what was found, where, and what to type. It is shown as one line, without a traceback.
"""

from __future__ import annotations


class SdbatchError(Exception):
    """Something a user can put right."""

    exit_code = 2


class RequestError(SdbatchError):
    """What is asked of one picture cannot be made."""


class ConfigError(SdbatchError):
    """A YAML file or an override does not say what it must."""


class WeightsError(SdbatchError):
    """A file of weights is missing, is something else than weights, or does not fit the model."""


class DeviceError(SdbatchError):
    """The asked device or precision is not here."""


class OutputError(SdbatchError):
    """A result cannot be written."""


class RunError(SdbatchError):
    """A run folder is missing, unreadable, or belongs to another plan."""


class SchedulerError(SdbatchError):
    """The scheduler refused, or cannot be reached."""

    exit_code = 3


class GenerationError(SdbatchError):
    """The model gave something that is not a picture."""

    exit_code = 4


class NoMemoryError(SdbatchError):
    """The memory of the card or the machine is too small for what was asked at once."""


def first_line(error: BaseException) -> str:
    """The first line of what a library says, which may be nothing; torch puts its stack behind it."""
    return (str(error).splitlines() or [""])[0]
