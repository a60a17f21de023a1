"""Seconds of the processor: what other work or the host of a virtual machine takes from a clock's is not in them."""

from __future__ import annotations

import time
from typing import Any, Callable, Dict, List, Mapping


def processor_seconds(call: Callable[[], Any]) -> float:
    """What a call takes of the processor, all threads together."""
    start = time.process_time()
    call()
    return time.process_time() - start


def in_turns(calls: Mapping[str, Callable[[], Any]], rounds: int) -> Dict[str, List[float]]:
    """Seconds of each call, a number a round, after one to warm up; every second round goes backwards."""
    found: Dict[str, List[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for number in range(rounds):
        for name in list(calls)[:: -1 if number % 2 else 1]:
            found[name].append(processor_seconds(calls[name]))
    return found
