"""The learning-rate curve that CompVis-style configs name."""

from __future__ import annotations

from typing import Sequence


class LambdaLinearScheduler:
    """Per cycle: a linear rise from f_start to f_max over the warm-up steps, then a linear fall to f_min at its end.

    Called with the global step, it gives the factor on the base learning rate (`torch.optim.lr_scheduler.LambdaLR`).
    """

    def __init__(
        self,
        warm_up_steps: Sequence[int],
        f_min: Sequence[float],
        f_max: Sequence[float],
        f_start: Sequence[float],
        cycle_lengths: Sequence[int],
        verbosity_interval: int = 0,
    ) -> None:
        lengths = {len(values) for values in (warm_up_steps, f_min, f_max, f_start, cycle_lengths)}
        if len(lengths) != 1:
            raise ValueError(f"every list must have one entry a cycle, got lengths {sorted(lengths)}")
        self.cycles = list(zip(cycle_lengths, warm_up_steps, f_start, f_max, f_min))
        self.verbosity_interval = verbosity_interval

    def __call__(self, step: int) -> float:
        return self.schedule(step)

    def schedule(self, step: int) -> float:
        """The factor at a global step; past the last cycle it stays at that cycle's f_min."""
        for length, warm_up, start, peak, low in self.cycles:
            if step < length:
                if step < warm_up:
                    return start + (peak - start) * step / warm_up
                return peak + (low - peak) * (step - warm_up) / max(length - warm_up, 1)
            step -= length
        return self.cycles[-1][4]
