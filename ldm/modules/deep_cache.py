"""What the deep blocks of the U-Net gave, kept for the steps that do without them (DeepCache, Ma et al. 2023).

From one step to the next the deep maps hardly change. So only one step in `interval` runs the whole network; the others
run the `DEPTH` first blocks on the way down and their opposites on the way up, which take the map that came up from
below in the last whole step.
"""

from __future__ import annotations

from typing import Optional

from torch import Tensor

# Blocks on the way down that every step runs, the first convolution among them.
DEPTH = 1


class DeepCache:
    """The memory of one run. `map` (B,C,h,w) is None where the whole network is to be run, which then puts it there."""

    def __init__(self, interval: int, depth: int = DEPTH) -> None:
        self.interval = interval
        self.depth = depth
        self.map: Optional[Tensor] = None
        self._t: Optional[float] = None
        self._age = 0

    def prepare(self, t: float, batch: int) -> None:
        """Be ready for a call with `batch` rows at timestep t; another t is the next step.

        A sampler may ask several times at one t, or look ahead at the next: it gets the map of the last whole step.
        A map for another number of rows, as where guidance ends, is of no use: then this step is a whole one.
        """
        if t != self._t:
            self._t = t
            self._age += 1
        if self.map is None or self._age >= self.interval or self.map.shape[0] != batch:
            self.map, self._age = None, 0
