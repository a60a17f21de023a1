"""One call of a script: the command line settled into an `Order`, the order painted, an error told in one line."""

from __future__ import annotations

import argparse
import atexit
import os
import sys
from typing import Callable, NoReturn

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
    except SdbatchError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return error.exit_code
    except (RuntimeError, MemoryError) as error:
        from ldm.inference.runtime import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        print(f"{parser.prog}: error: out of memory; {MORE_ROOM}", file=sys.stderr)
        return GenerationError.exit_code
    except ImportError as error:
        print(f"{parser.prog}: error: {error}; activate the environment where it is installed", file=sys.stderr)
        return SdbatchError.exit_code
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted", file=sys.stderr)
        return 130
    return 0


def leave(code: int) -> NoReturn:
    """End the process at once. All files are closed, and to take torch and a model apart takes half a second."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)
