"""The first stage: a picture as a small latent, and back (Rombach et al. 2022, section 3.1)."""

from __future__ import annotations

from typing import Any, Mapping, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from ldm.modules.diffusionmodules.large import decode_in_strips, encode_in_strips, largest_map
from ldm.modules.diffusionmodules.model import Decoder, Encoder, FirstStageDimensions
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from ldm.util import refuse_unknown_params

# Of one map: a picture with a larger one is worked on in strips. Several are alive at once otherwise.
LARGE_MAP_BYTES = 2**30


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

    def encode(self, x: Tensor, *, in_strips: bool = False) -> DiagonalGaussianDistribution:
        """image (B,3,H,W) -> the posterior over its latent (B,embed_dim,H/factor,W/factor).

        Large ones are worked on in strips, and others where asked: the same within rounding, in little memory. Never
        what has gradients.
        """
        divisible = x.shape[2] % self.factor == 0 and x.shape[3] % self.factor == 0
        large = in_strips or _is_large(self.encoder.down, x, places=x.shape[2] * x.shape[3])
        if divisible and large and not self._learns:
            return DiagonalGaussianDistribution(self.quant_conv(encode_in_strips(self.encoder, x)))
        return DiagonalGaussianDistribution(self.quant_conv(self.encoder(x)))

    def decode(self, z: Tensor, *, in_strips: bool = False) -> Tensor:
        """latent (B,embed_dim,h,w) -> image (B,3,h*factor,w*factor); in strips as with `encode`."""
        large = in_strips or _is_large(self.decoder.up, z, places=z.shape[2] * z.shape[3] * self.factor**2)
        hidden = self.post_quant_conv(z)
        return decode_in_strips(self.decoder, hidden) if large and not self._learns else self.decoder(hidden)

    def forward(self, x: Tensor, sample_posterior: bool = True) -> Tuple[Tensor, DiagonalGaussianDistribution]:
        """The reconstruction of x and the posterior it came through."""
        posterior = self.encode(x)
        return self.decode(posterior.sample() if sample_posterior else posterior.mode()), posterior

    @property
    def _learns(self) -> bool:
        return self.training or torch.is_grad_enabled()


def _is_large(stages: nn.ModuleList, x: Tensor, *, places: int) -> bool:
    return largest_map(stages, places) * x.element_size() > LARGE_MAP_BYTES
