"""Memory for feature maps that stay while others come and go: of one map's rows another's take the place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Iterator, List, Optional, Sequence

from torch import Tensor

Layer = Callable[[Tensor], Tensor]

# Numbers of a piece that stays in the processor's caches from one operator to the next.
PIECE = 2**19


class Slots:
    """Memory for maps that stay, in slots of `size` numbers. What one map leaves another takes.

    Apart from what comes and goes: a C library cannot give back what is free in between, and takes more and more.
    """

    together = 4  # large enough for pages of their own, none of which is there before it is written to

    def __init__(self, size: int) -> None:
        self.size = size
        self._free: List[Tensor] = []
        self._joined: Optional[Tensor] = None

    def take(self, like: Tensor) -> Tensor:
        """(size,) of the dtype and on the device of `like`."""
        if not self._free:
            self._free = list(like.new_empty(self.together * self.size).split(self.size))[::-1]
        return self._free.pop()

    def joined(self, parts: Sequence[Tensor], change: Optional[Layer] = None) -> Tensor:
        """The parts in one, each place of them changed: to be read before this is called again."""
        if change is None and len(parts) == 1:
            return parts[0]
        height = sum(part.shape[2] for part in parts)
        row = parts[0][:, :, :1]
        if self._joined is None or self._joined.numel() < height * row.numel():
            self._joined = None  # before there is another
            self._joined = row.new_empty(height * row.numel())
        joined, done = _empty(row, height, self._joined), 0
        for piece in pieces(parts):
            joined[:, :, done : done + piece.shape[2]] = piece if change is None else change(piece)
            done += piece.shape[2]
        return joined

    def give_back(self, slot: Tensor) -> None:
        """It is free again."""
        self._free.append(slot)


@dataclass
class _Part:
    """Rows (1,C,bottom-top,W), None when they have been let go; and the slot that they are in, if any."""

    rows: Optional[Tensor]
    top: int
    bottom: int
    slot: Optional[Tensor] = None


class Kept:
    """The rows of a map in memory, or the upper ones, in slots."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._parts: List[_Part] = []
        self._height = 0
        self._highest: Optional[int] = None
        self.elements = 0

    def add(self, strip: Tensor) -> None:
        """The next rows, as they are."""
        top, self._height = self._height, self._height + strip.shape[2]
        self._parts.append(_Part(strip, top, self._height))
        self.elements += strip.numel()

    def append(self, strips: Sequence[Tensor]) -> None:
        """The next rows, copied."""
        for strip in strips:
            self.elements += strip.numel()
            while strip.shape[2]:
                strip = self._copied(strip)

    def rows(self, first: int, last: int) -> List[Tensor]:
        """As of a map."""
        self._highest = first if self._highest is None else min(first, self._highest)
        found = []
        for part in self._parts:
            if part.top < last and first < part.bottom:
                assert part.rows is not None, "rows were asked for that had been let go"
                found.append(part.rows[:, :, max(first - part.top, 0) : last - part.top])
        return found

    def release(self) -> None:
        """Let go what lies above all rows asked for since the last call: who goes down a map does not ask again."""
        if self._highest is not None:
            self._let_go_above(self._highest)
        self._highest = None

    def release_all(self) -> None:
        """Let go all rows."""
        self._let_go_above(self._height)

    def _let_go_above(self, row: int) -> None:
        for part in self._parts:
            if min(part.bottom, self._height) <= row:
                part.rows = None
                if part.slot is not None:
                    self._slots.give_back(part.slot)
                    part.slot = None

    def _copied(self, strip: Tensor) -> Tensor:
        """The rows that found no room in this part."""
        if not self._parts or self._parts[-1].bottom == self._height:
            self._parts.append(self._empty(strip))
        part = self._parts[-1]
        assert part.rows is not None, "no rows follow those that had been let go"
        now, later = strip[:, :, : part.bottom - self._height], strip[:, :, part.bottom - self._height :]
        top, self._height = self._height, self._height + now.shape[2]
        part.rows[:, :, top - part.top : self._height - part.top] = now
        return later

    def _empty(self, like: Tensor) -> _Part:
        """As many rows as a slot has room for; one of its own where it has room for none."""
        row = like[:, :, :1]
        height = self._slots.size // row.numel()
        slot = self._slots.take(like) if height else None
        rows = _empty(row, max(height, 1), row.new_empty(row.numel()) if slot is None else slot)
        return _Part(rows, self._height, self._height + rows.shape[2], slot)


def pieces(parts: Sequence[Tensor]) -> Iterator[Tensor]:
    """The same rows, few at a time; as they are on a card, where each operator takes time to start."""
    for part in parts:
        few = max(1, PIECE // (part.shape[1] * part.shape[3]))
        yield from part.split(few if part.device.type == "cpu" else part.shape[2], dim=2)


def _empty(like: Tensor, height: int, memory: Tensor) -> Tensor:
    """(1,C,height,W) at the beginning of that memory, in the order in which the numbers of another map lie."""
    _, channels, _, width = like.shape
    numbers = memory[: channels * height * width]
    if like.stride(1) == 1:  # channels last
        return numbers.view(1, height, width, channels).permute(0, 3, 1, 2)
    return numbers.view(1, channels, height, width)
