"""A card for tests on a CPU: its memory and its recordings are made up, everything else is the real code."""

from __future__ import annotations

from typing import Any, Callable, List, Optional, Tuple

import torch
from torch import Tensor


class FakeMemory:
    """So many bytes, of which a run of the network takes `fixed` and `each` for each of its pictures.

    `run` is what is to be handed to what measures; it notes the sizes that it was called with.
    """

    def __init__(self, total: int, *, fixed: int = 0, each: int = 1, run: Optional[Callable[[int], Any]] = None):
        self.total, self.fixed, self.each = total, fixed, each
        self.sizes: List[int] = []
        self._run = run

    def run(self, pictures: int) -> Any:
        self.sizes.append(pictures)
        if self.fixed + self.each * pictures > self.total:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return self._run(pictures) if self._run else None

    def free(self) -> int:
        return self.total

    def peak(self, work: Callable[[], object]) -> int:
        work()
        return self.fixed + self.each * self.sizes[-1]


class FakeGraphs:
    """Records by keeping the work, and replays by doing it again into the memory of the first outcome.

    `launching` is the share of a call's time that its launches take, by `clock`, which moves by itself.
    """

    def __init__(self, launching: float = 1.0) -> None:
        self.launching = launching
        self.recorded = self.replayed = 0
        self._now, self._asked = 0.0, 0

    def record(self, work: Callable[[], Tensor]) -> Tuple[Callable[[], None], Tensor]:
        outcome = work().clone()
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            with torch.inference_mode():
                outcome.copy_(work())

        return replay, outcome

    def wait(self) -> None:
        pass

    def clock(self) -> float:
        """Asked three times a call: at its start, when all is launched, and at its end."""
        self._now += (0.0, self.launching, 1.0 - self.launching)[self._asked % 3]
        self._asked += 1
        return self._now
