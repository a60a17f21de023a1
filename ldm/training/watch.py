"""See what is being learned: a grid of pictures every so often, and a line a minute for a log file."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any, Dict

import numpy as np
import pytorch_lightning as pl
from PIL import Image

log = logging.getLogger(__name__)


class SampleGrids(pl.Callback):
    """Writes `grids/000500.png` from the module's own `pictures(batch)`, always of the same batch."""

    def __init__(self, folder: Path, batch: Dict[str, Any], every_steps: int) -> None:
        self.folder = folder / "grids"
        self.batch = batch
        self.every_steps = every_steps

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        if pl_module.step % self.every_steps == 0:
            self.write(pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.write(pl_module)

    def write(self, pl_module: Any) -> None:
        """One picture of all the module's pictures, as many a row as the batch has."""
        pl_module.eval()
        images = pl_module.pictures(self.batch).clamp(-1, 1)
        pl_module.train()
        per_row = len(self.batch["caption"])
        rows = [np.concatenate(list(row), axis=1) for row in _pixels(images).reshape(-1, per_row, *_side(images))]
        self.folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.concatenate(rows)).save(self.folder / f"{pl_module.step:06}.png")


class LogLines(pl.Callback):
    """Step, speed and the logged values, at most once a minute."""

    at: float
    step: int

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.at, self.step = time.monotonic(), pl_module.step

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        now = time.monotonic()
        if now - self.at < 60:
            return
        values = ", ".join(f"{name} {float(value):.4f}" for name, value in trainer.callback_metrics.items())
        pace = (now - self.at) / max(pl_module.step - self.step, 1)
        log.info(
            "step %d, %.3f s a step, lr %.2e, %s",
            pl_module.step,
            pace,
            trainer.optimizers[0].param_groups[0]["lr"],
            values,
        )
        self.at, self.step = now, pl_module.step


def _pixels(images: Any) -> np.ndarray:
    array = ((images + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return np.asarray(array)


def _side(images: Any) -> Any:
    return images.shape[2], images.shape[3], images.shape[1]
