"""Seconds of the processor: of those a machine that does other work takes few, of a clock's it takes any number."""

from __future__ import annotations

import functools
import time
from typing import Any, Callable, Dict, List, Mapping

from on_processor.parts import alternate


def processor_seconds(call: Callable[[], Any]) -> float:
    """What a call takes of the processor, all threads together."""
    start = time.process_time()
    call()
    return time.process_time() - start


def in_turns(calls: Mapping[str, Callable[[], Any]], rounds: int) -> Dict[str, List[float]]:
    """Seconds of each call, a number a round; all have their turn in a round, so that ratios are of one time."""
    return alternate({name: functools.partial(processor_seconds, call) for name, call in calls.items()}, rounds)
