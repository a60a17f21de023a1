"""The first stage: a picture as a small latent, and back (Rombach et al. 2022, section 3.1)."""

from __future__ import annotations

from typing import Any, Mapping, Optional, Sequence, Tuple

from torch import Tensor, nn

from ldm.modules.diffusionmodules.model import Decoder, Encoder, FirstStageDimensions
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from ldm.util import refuse_unknown_params


class AutoencoderKL(nn.Module):
    """image (B,3,H,W) in [-1,1] <-> posterior over latents (B,embed_dim,h,w).

    `lossconfig`, `ckpt_path`, `ignore_keys`, `image_key`, `colorize_nlabels` and `monitor` belong to training; they are
    accepted by name, so that one YAML serves both, and nothing is built or read for them here.
    """

    def __init__(
        self,
        ddconfig: Mapping[str, Any],
        embed_dim: int,
        lossconfig: Optional[Mapping[str, Any]] = None,
        ckpt_path: Optional[str] = None,
        ignore_keys: Sequence[str] = (),
        image_key: str = "image",
        colorize_nlabels: Optional[int] = None,
        monitor: Optional[str] = None,
    ) -> None:
        super().__init__()
        refuse_unknown_params("ddconfig", FirstStageDimensions, ddconfig)
        self.encoder, self.decoder = Encoder(**ddconfig), Decoder(**ddconfig)
        self.quant_conv = nn.Conv2d(2 * ddconfig["z_channels"], 2 * embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, ddconfig["z_channels"], 1)
        self.embed_dim = embed_dim
        self.factor = 2 ** (len(self.decoder.up) - 1)

    def encode(self, x: Tensor) -> DiagonalGaussianDistribution:
        """image (B,3,H,W) -> the posterior over its latent (B,embed_dim,H/factor,W/factor)."""
        return DiagonalGaussianDistribution(self.quant_conv(self.encoder(x)))

    def decode(self, z: Tensor) -> Tensor:
        """latent (B,embed_dim,h,w) -> image (B,3,h*factor,w*factor)."""
        return self.decoder(self.post_quant_conv(z))

    def forward(self, x: Tensor, sample_posterior: bool = True) -> Tuple[Tensor, DiagonalGaussianDistribution]:
        """The reconstruction of x and the posterior it came through."""
        posterior = self.encode(x)
        return self.decode(posterior.sample() if sample_posterior else posterior.mode()), posterior
