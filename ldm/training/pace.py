"""How fast to learn: a short rise, then a cosine fall that reaches its end together with the budget."""

from __future__ import annotations

import math
import time
from typing import Any, Dict, Optional

import pytorch_lightning as pl


class Pace(pl.Callback):
    """Sets the learning rate of every optimizer from the share of the budget used, and stops when it is used up.

    The budget is steps, minutes of training, or both: whichever ends first. Minutes already trained come back from a
    checkpoint, so a run that is stopped and resumed ends where it would have ended.
    """

    def __init__(self, max_steps: int, max_minutes: Optional[float], warmup_steps: int, final: float = 0.01) -> None:
        self.max_steps = max_steps
        self.max_minutes = max_minutes
        self.warmup_steps = warmup_steps
        self.final = final
        self.minutes_before = 0.0
        self.started: Optional[float] = None

    @property
    def minutes(self) -> float:
        """Minutes of training, those before a resume included."""
        now = 0.0 if self.started is None else (time.monotonic() - self.started) / 60
        return self.minutes_before + now

    def used(self, step: int) -> float:
        """The share of the budget that is gone, in 0..1."""
        share = step / self.max_steps
        return min(1.0, share if self.max_minutes is None else max(share, self.minutes / self.max_minutes))

    def factor(self, step: int) -> float:
        """What the learning rate is multiplied by at a step."""
        warm = min(1.0, (step + 1) / max(self.warmup_steps, 1))
        fall = 0.5 * (1 + math.cos(math.pi * self.used(step)))
        return warm * (self.final + (1 - self.final) * fall)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started = time.monotonic()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        factor = self.factor(pl_module.step)
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group.setdefault("peak_lr", group["lr"])
                group["lr"] = group["peak_lr"] * factor

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        if self.used(pl_module.step) >= 1:
            trainer.should_stop = True

    def state_dict(self) -> Dict[str, float]:
        return {"minutes": self.minutes}

    def load_state_dict(self, state_dict: Dict[str, float]) -> None:
        self.minutes_before = state_dict["minutes"]
