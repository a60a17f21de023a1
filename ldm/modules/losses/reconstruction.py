"""What a first stage is trained for: pictures that come back as they went in, through a latent near a unit Gaussian."""

from __future__ import annotations

from typing import Dict, Tuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ldm.modules.distributions.distributions import DiagonalGaussianDistribution


class ReconstructionLoss(nn.Module):
    """L1 on the pixels and, `edge_weight` times, on their differences to neighbours; `kl_weight` nats a latent number.

    The differences keep outlines sharp, which L1 alone trades for a smooth mean. With `disc_weight` above 0 a patch
    discriminator (Isola et al. 2017, as VQGAN uses it) joins in after `disc_start` steps.
    """

    def __init__(
        self, edge_weight: float = 1.0, kl_weight: float = 5e-4, disc_weight: float = 0.0, disc_start: int = 0
    ) -> None:
        super().__init__()
        self.edge_weight = edge_weight
        self.kl_weight = kl_weight
        self.disc_weight = disc_weight
        self.disc_start = disc_start
        if disc_weight:
            # An extra of training: taming-transformers brings Lightning and a network of its own.
            from taming.modules.discriminator.model import NLayerDiscriminator, weights_init

            self.discriminator = NLayerDiscriminator(n_layers=2, ndf=32).apply(weights_init)

    def plays(self, step: int) -> bool:
        """Whether the discriminator takes part at this step."""
        return self.disc_weight > 0 and step >= self.disc_start

    def forward(
        self, image: Tensor, rebuilt: Tensor, posterior: DiagonalGaussianDistribution, step: int
    ) -> Tuple[Tensor, Dict[str, Tensor]]:
        """The loss and its parts, for images (B,3,H,W)."""
        rebuilt = rebuilt.float()
        l1 = functional.l1_loss(rebuilt, image)
        edges = sum(functional.l1_loss(rebuilt.diff(dim=d), image.diff(dim=d)) for d in (2, 3))
        kl = posterior.kl().float().mean() / posterior.mean[0].numel()
        loss = l1 + self.edge_weight * edges + self.kl_weight * kl
        parts = {"l1": l1.detach(), "kl": kl.detach()}
        if self.plays(step):
            fooled = -self.discriminator(rebuilt).float().mean()
            loss = loss + self.disc_weight * fooled
            parts["fooled"] = fooled.detach()
        return loss, parts

    def judge(self, image: Tensor, rebuilt: Tensor) -> Tensor:
        """The discriminator's own hinge loss (Lim & Ye 2017)."""
        real = self.discriminator(image).float()
        fake = self.discriminator(rebuilt.detach()).float()
        return 0.5 * (torch.relu(1 - real).mean() + torch.relu(1 + fake).mean())
