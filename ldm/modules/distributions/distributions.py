"""The Gaussian that the first stage encodes a picture to."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class DiagonalGaussianDistribution:
    """Mean and log variance from parameters (B,2C,h,w), channels first the means (Kingma & Welling 2013)."""

    def __init__(self, parameters: Tensor) -> None:
        self.mean, logvar = parameters.chunk(2, dim=1)
        self.logvar = logvar.clamp(-30.0, 20.0)
        self.std = (0.5 * self.logvar).exp()
        self.var = self.logvar.exp()

    def sample(self) -> Tensor:
        """A draw (B,C,h,w); its noise comes from the CPU's global generator, whatever the device."""
        return self.mean + self.std * torch.randn(self.mean.shape).to(self.mean)

    def mode(self) -> Tensor:
        """The likeliest latent (B,C,h,w)."""
        return self.mean

    def kl(self) -> Tensor:
        """Kullback-Leibler divergence (B,) from the unit Gaussian, in nats."""
        return 0.5 * (self.mean**2 + self.var - 1.0 - self.logvar).flatten(1).sum(dim=1)

    def nll(self, sample: Tensor) -> Tensor:
        """Negative log likelihood (B,) of a latent, in nats."""
        terms = math.log(2 * math.pi) + self.logvar + (sample - self.mean) ** 2 / self.var
        return 0.5 * terms.flatten(1).sum(dim=1)
