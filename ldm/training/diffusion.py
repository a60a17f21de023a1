"""Training of the diffusion with its text encoder: LatentDiffusion wrapped for Lightning."""

from __future__ import annotations

from typing import Any, Dict, List

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional

from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.ema import LitEma
from ldm.training.optimizer import adamw


def spread_t(count: int, total: int) -> Tensor:
    """(B,) timesteps, one from each B-th part of the schedule: less noise in the loss than independent draws."""
    return ((torch.arange(count) + torch.rand(count)) / count * total).long().clamp(max=total - 1)


def min_snr_weight(alpha: Tensor, gamma: float) -> Tensor:
    """(B,) weights of the noise loss at signal power alpha (B,) (Min-SNR, Hang et al. 2023, eq. 8)."""
    snr = alpha / (1 - alpha)
    return snr.clamp(max=gamma) / snr


class DiffusionTraining(pl.LightningModule):
    """Learns to predict the noise in latents; the first stage stays as it is, an average of the rest is kept."""

    steps_done: Tensor

    def __init__(
        self,
        model: LatentDiffusion,
        learning_rate: float,
        *,
        unconditional_share: float,
        ema_decay: float,
        snr_gamma: float,
    ) -> None:
        super().__init__()
        self.model = model
        self.model.first_stage_model.eval().requires_grad_(False)
        self.learning_rate = learning_rate
        self.unconditional_share = unconditional_share
        self.snr_gamma = snr_gamma
        self.ema = LitEma(self.trained, ema_decay)
        self.register_buffer("steps_done", torch.tensor(0))

    @property
    def trained(self) -> nn.ModuleList:
        """What learns: the network and the text encoder."""
        return nn.ModuleList([self.model.model, self.model.cond_stage_model])

    @property
    def step(self) -> int:
        """Batches learned from."""
        return int(self.steps_done)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        parameters = [p for p in self.trained.parameters() if p.requires_grad]
        return adamw(parameters, self.learning_rate, weight_decay=1e-3)

    def training_step(self, batch: Dict[str, Any], batch_idx: int) -> Tensor:
        clean = batch["latent"] * self.model.scale_factor
        t = spread_t(len(clean), self.model.num_timesteps).to(clean.device)
        noise = torch.randn_like(clean)
        cond = self.model.get_learned_conditioning(self._drop(batch["caption"]))
        predicted = self.model.apply_model(self.model.q_sample(clean, t, noise), t, cond)
        error = functional.mse_loss(predicted.float(), noise, reduction="none").mean(dim=(1, 2, 3))
        loss = (min_snr_weight(self.model.alphas_cumprod[t], self.snr_gamma) * error).mean()
        self.log_dict({"loss": loss.detach(), "error": error.mean().detach()}, prog_bar=True)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.steps_done += 1
        self.ema(self.trained)

    def _drop(self, captions: List[str]) -> List[str]:
        # Some captions are left empty, so that the model learns what guidance steers away from.
        keep = torch.rand(len(captions)) >= self.unconditional_share
        return [caption if kept else "" for caption, kept in zip(captions, keep)]

    @torch.no_grad()
    def pictures(self, batch: Dict[str, Any]) -> Tensor:
        """What the averaged weights paint for the batch's captions in 20 steps, images (B,3,H,W); the noise stays."""
        captions = batch["caption"]
        size = self.model.image_size
        start = torch.randn(
            (len(captions), self.model.channels, size, size),  # type: ignore[arg-type]  # square here, as the pictures are
            generator=torch.Generator().manual_seed(1),
        )
        with self.ema.swapped_into(self.trained):
            latents, _ = DDIMSampler(self.model).sample(
                S=20,
                batch_size=len(captions),
                shape=start.shape[1:],
                x_T=start.to(self.device),
                conditioning=self.model.get_learned_conditioning(captions),
                unconditional_conditioning=self.model.get_learned_conditioning([""] * len(captions)),
                unconditional_guidance_scale=3.0,
            )
            return self.model.decode_first_stage(latents).float()
