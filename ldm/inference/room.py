"""How many pictures a card samples at once: as many as were asked for, or as its memory has room for.

The network is run once for all of them, which builds the kernels that are needed anyway. Where a tenth of the memory
does not stay free, two smaller runs give a line, memory = fixed + each * pictures, and the line gives the number. So no
batch is lost to a card that is too small. The first stage takes pictures one by one and needs no measuring.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Callable, Dict, Hashable, List, Optional, Protocol, Sequence, TypeVar

from ldm.inference.runtime import is_out_of_memory, release_memory

log = logging.getLogger(__name__)

SHARE = 0.9  # of what is free: memory comes in blocks, some of which lie where no other fits

T = TypeVar("T")
RunNetwork = Callable[[int], object]  # once, for so many pictures


class Memory(Protocol):
    """The memory of a card, in bytes."""

    def free(self) -> int: ...

    def peak(self, work: Callable[[], object]) -> int: ...


@dataclass(frozen=True)
class Line:
    """The bytes that sampling takes: `fixed`, and `each` for every picture."""

    fixed: float
    each: float

    @classmethod
    def through(cls, of_one: int, of_two: int) -> Line:
        """From the bytes that one picture and two pictures take."""
        each = max(of_two - of_one, 0)
        return cls(of_one - each, each)

    def pictures(self, free: int) -> Optional[int]:
        """How many fit into a share of so many bytes, at least one; None where more pictures take no more."""
        return max(1, int((SHARE * free - self.fixed) // self.each)) if self.each else None


def fits(run_network: RunNetwork, pictures: int, memory: Memory) -> bool:
    """Whether so many pictures can be sampled at once, found by one run of the network."""
    peak = measure(run_network, pictures, memory)
    return peak is not None and peak <= SHARE * memory.free()


def measure(run_network: RunNetwork, pictures: int, memory: Memory) -> Optional[int]:
    """The bytes that so many pictures take; None where the card has not so many."""
    try:
        return memory.peak(lambda: run_network(pictures))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    release_memory()  # behind the except clause: the error holds the frames that hold the tensors
    return None


def largest(run_network: RunNetwork, pictures: int, memory: Memory) -> int:
    """How many of so many pictures fit at once, at least one, by the line through one and two."""
    if pictures == 1:
        return 1
    sizes = [measure(run_network, count, memory) for count in (1, 2)]
    of_one, of_two = sizes
    if of_one is None or of_two is None:
        return 1
    return min(pictures, Line.through(of_one, of_two).pictures(memory.free()) or pictures)


class Rooms:
    """Remembers of each kind of picture how many fit at once."""

    def __init__(self, memory: Optional[Memory], make_room: Callable[[], None] = lambda: None) -> None:
        """`memory`: None where it is not known, as on a CPU; then everything fits.

        `make_room` gives back what only saves time, before anything is measured: what fits must not depend on what was
        sampled before.
        """
        self._memory, self._make_room = memory, make_room
        self._fitting: Dict[Hashable, int] = {}
        self._limits: Dict[Hashable, int] = {}

    def room(self, kind: Hashable, pictures: int, run_network: RunNetwork) -> int:
        """How many of so many pictures of a kind to sample at once, at least one; measured at most once a kind."""
        if self._memory is None or pictures <= max(1, self._fitting.get(kind, 0)):
            return pictures
        if kind not in self._limits:
            self._make_room()
            if fits(run_network, pictures, self._memory):
                self._fitting[kind] = pictures
                return pictures
            self._limits[kind] = largest(run_network, pictures - 1, self._memory)
            log.warning("the card has memory for %d of %d pictures at once", self._limits[kind], pictures)
        return min(pictures, self._limits[kind])


def shared_out(items: Sequence[T], room: int) -> List[Sequence[T]]:
    """The items in as few parts of at most `room` as there can be, and these as equal as can be."""
    parts = -(-len(items) // room)
    bounds = [number * len(items) // parts for number in range(parts + 1)]
    return [items[start:end] for start, end in zip(bounds, bounds[1:])]
