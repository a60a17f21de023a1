"""One call of a script: the command line settled into an `Order`, the order painted, an error told in one line."""

from __future__ import annotations

import argparse
import atexit
import os
import signal
import sys
from typing import Callable, NoReturn, Optional, Tuple

from ldm.errors import GenerationError, SdbatchError
from ldm.inference.digests import sha256_beside
from ldm.modules.memory import nothing_to_collect
from scripts._options import OptionParser, Order

MORE_ROOM = "paint fewer pictures at a time (--n_samples 1), or smaller ones"


def run(parser: OptionParser, settle: Callable[[argparse.Namespace], Order]) -> int:
    """Paint what the command line asks for; what a user can put right ends in one line and an exit code."""
    options = parser.parse_args()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]  # real streams
    try:
        with nothing_to_collect():
            order = settle(options)
            # Goes into the pictures' metadata. The other core has nothing to do while this one imports torch.
            digest = None if options.skip_save else sha256_beside(order.files.checkpoint)
            from scripts._paint import load, paint

            pipeline = load(order)
        paint(order, pipeline, digest)
    except BrokenPipeError:  # whoever read what is said has seen enough
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        explained = explain(error)
        if explained is None:
            raise
        said, code = explained
        print(f"{parser.prog}: error: {said}", file=sys.stderr)
        return code
    return 0


def explain(error: Exception) -> Optional[Tuple[str, int]]:
    """What a user is told, and the status of the command; None for what no user can put right."""
    if isinstance(error, SdbatchError):
        return str(error), error.exit_code
    if isinstance(error, ImportError):
        return f"{error}; activate the environment where it is installed", SdbatchError.exit_code
    if isinstance(error, OSError):
        return str(error), SdbatchError.exit_code
    if isinstance(error, (RuntimeError, MemoryError)):
        from ldm.inference.runtime import is_out_of_memory

        return (f"out of memory; {MORE_ROOM}", GenerationError.exit_code) if is_out_of_memory(error) else None
    return None


def leave(code: int) -> NoReturn:
    """End the process at once. All files are closed, and to take torch and a model apart takes half a second."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:  # nobody reads it any more
            code = code or 128 + signal.SIGPIPE
        except OSError:  # a disk is full
            code = code or SdbatchError.exit_code
    os._exit(code)
