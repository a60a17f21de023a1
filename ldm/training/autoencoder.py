"""Training of the first stage: AutoencoderKL wrapped for Lightning."""

from __future__ import annotations

from typing import Any, Dict, List, Optional

import pytorch_lightning as pl
import torch
from torch import Tensor

from ldm.models.autoencoder import AutoencoderKL
from ldm.modules.losses.reconstruction import ReconstructionLoss
from ldm.training.optimizer import adamw

WHOLE_EVERY = 8


def random_crop(image: Tensor, side: int, multiple: int) -> Tensor:
    """A square (B,3,side,side) of the images (B,3,H,W) at a corner that is a multiple of the latent's pixel."""
    top, left = (int(torch.randint(0, (length - side) // multiple + 1, ())) * multiple for length in image.shape[2:])
    return image[:, :, top : top + side, left : left + side].contiguous()


class AutoencoderTraining(pl.LightningModule):
    """One step rebuilds a batch; the discriminator, where there is one, learns from the same reconstruction.

    Steps on crops cost a fraction of whole pictures and teach nearly as much; every eighth is on whole ones, for the
    group norms see other statistics there.
    """

    steps_done: Tensor

    def __init__(
        self, first_stage: AutoencoderKL, loss: ReconstructionLoss, learning_rate: float, crop_px: Optional[int] = None
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.first_stage = first_stage
        self.loss = loss
        self.learning_rate = learning_rate
        self.crop_px = crop_px
        self.register_buffer("steps_done", torch.tensor(0))

    @property
    def step(self) -> int:
        """Batches learned from. Lightning's own count goes up once for each optimizer."""
        return int(self.steps_done)

    def configure_optimizers(self) -> List[torch.optim.Optimizer]:
        sets: List[Any] = [list(self.first_stage.parameters())]
        if self.loss.disc_weight:
            sets.append(list(self.loss.discriminator.parameters()))
        return [adamw(parameters, self.learning_rate, weight_decay=1e-4) for parameters in sets]

    def training_step(self, batch: Dict[str, Any], batch_idx: int) -> None:
        image = batch["image"]
        if self.crop_px and self.step % WHOLE_EVERY:
            image = random_crop(image, self.crop_px, self.first_stage.factor)
        optimizers = self.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        rebuilt, posterior = self.first_stage(image)
        loss, parts = self.loss(image, rebuilt, posterior, self.step)
        self._learn(optimizers[0], loss, self.first_stage)
        if self.loss.plays(self.step):
            verdict = self.loss.judge(image, rebuilt)
            self._learn(optimizers[1], verdict, self.loss.discriminator)
            parts["judge"] = verdict.detach()
        self.steps_done += 1
        self.log_dict(parts, prog_bar=True)

    def _learn(self, optimizer: Any, loss: Tensor, network: torch.nn.Module) -> None:
        optimizer.zero_grad()
        self.manual_backward(loss)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()

    @torch.no_grad()
    def pictures(self, batch: Dict[str, Any]) -> Tensor:
        """Originals over reconstructions, images (2B,3,H,W)."""
        rebuilt, _ = self.first_stage(batch["image"], sample_posterior=False)
        return torch.cat([batch["image"], rebuilt.float()])
