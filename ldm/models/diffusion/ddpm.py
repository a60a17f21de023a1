"""The latent diffusion model: U-Net, first stage, text encoder and noise schedule in one module.

It knows how to predict noise and how to cross between pictures, latents and text; samplers and training stand outside.
The names of its tensors are the names in an SD v1 checkpoint.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, ClassVar, Iterator, List, Mapping, Optional, Sequence, Union

import numpy as np
import torch
from torch import Tensor, nn

from ldm.errors import ConfigError
from ldm.modules.diffusionmodules.schedule import make_beta_schedule, posterior_tables
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from ldm.modules.ema import LitEma
from ldm.modules.recall import Recall
from ldm.util import instantiate_from_config

SCHEDULE_BUFFERS = (
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
)


class DiffusionWrapper(nn.Module):
    """Hands the conditioning to the U-Net the way `conditioning_key` says."""

    def __init__(self, unet_config: Any, conditioning_key: Optional[str]) -> None:
        super().__init__()
        if conditioning_key not in (None, "crossattn"):
            raise ConfigError(f"conditioning_key must be 'crossattn' or null, got {conditioning_key!r}")
        self.diffusion_model = instantiate_from_config(unet_config)
        self.conditioning_key = conditioning_key

    def forward(
        self, x: Tensor, t: Tensor, context: Optional[Tensor] = None, recall: Optional[Recall] = None
    ) -> Tensor:
        return self.diffusion_model(x, t, context=context, recall=recall)


def refuse_parts_that_do_not_fit(channels: int, unet: Any, first_stage: Any, cond_stage: Any) -> None:
    """Raise ConfigError, naming both, for two numbers of a config that must be one; parts that tell none are let be."""
    told = [
        ("in_channels of unet_config", getattr(unet, "in_channels", None), "channels", channels),
        ("out_channels of unet_config", getattr(unet, "out_channels", None), "channels", channels),
        ("embed_dim of first_stage_config", getattr(first_stage, "embed_dim", None), "channels", channels),
        (
            "context_dim of unet_config",
            getattr(unet, "context_dim", None) or "left out",
            "the width of cond_stage_config",
            getattr(cond_stage, "width", None) if hasattr(unet, "context_dim") else None,
        ),
    ]
    for one, found, other, wanted in told:
        if found is not None and wanted is not None and found != wanted:
            raise ConfigError(f"{one} must be {wanted}, as {other} is, got {found}")


class LatentDiffusion(nn.Module):
    """Parameters as the CompVis schema names them.

    Only `parameterization: eps` is built. Everything from `monitor` on belongs to training and is accepted by name.
    `FIXED`: what may stand in a YAML with this value only.
    """

    FIXED: ClassVar[Mapping[str, Any]] = {
        "concat_mode": True, "cond_stage_forward": None, "learn_logvar": False, "logvar_init": 0.0,
        "scale_by_std": False,
    }  # fmt: skip

    # Of samplers' calls: `apply_model` takes what the calls before it left, and several texts for each latent.
    recalls: ClassVar[bool] = True

    betas: Tensor
    alphas_cumprod: Tensor
    sqrt_alphas_cumprod: Tensor
    sqrt_one_minus_alphas_cumprod: Tensor

    def __init__(
        self,
        unet_config: Any,
        first_stage_config: Any,
        cond_stage_config: Any,
        timesteps: int = 1000,
        beta_schedule: str = "linear",
        linear_start: float = 1e-4,
        linear_end: float = 2e-2,
        cosine_s: float = 8e-3,
        given_betas: Optional[Sequence[float]] = None,
        v_posterior: float = 0.0,
        parameterization: str = "eps",
        conditioning_key: Optional[str] = None,
        scale_factor: float = 1.0,
        image_size: Union[int, Sequence[int]] = 256,
        channels: int = 3,
        use_ema: bool = True,
        cond_stage_trainable: bool = False,
        first_stage_key: str = "image",
        cond_stage_key: str = "image",
        monitor: Optional[str] = None,
        num_timesteps_cond: Optional[int] = None,
        log_every_t: int = 100,
        loss_type: str = "l2",
        l_simple_weight: float = 1.0,
        original_elbo_weight: float = 0.0,
        clip_denoised: bool = True,
        scheduler_config: Any = None,
        use_positional_encodings: bool = False,
        ckpt_path: Optional[str] = None,
        ignore_keys: Sequence[str] = (),
        load_only_unet: bool = False,
    ) -> None:
        super().__init__()
        if parameterization != "eps":
            raise ConfigError(f"parameterization must be 'eps', got {parameterization!r}")
        self.model = DiffusionWrapper(unet_config, conditioning_key)
        self.first_stage_model = instantiate_from_config(first_stage_config)
        self.cond_stage_model = instantiate_from_config(cond_stage_config)
        refuse_parts_that_do_not_fit(
            channels, self.model.diffusion_model, self.first_stage_model, self.cond_stage_model
        )
        self.scale_factor = scale_factor
        self.image_size = image_size
        self.channels = channels
        self.num_timesteps = timesteps
        self.v_posterior = v_posterior
        self._given_betas = (
            np.asarray(given_betas, dtype=np.float64)
            if given_betas is not None
            else make_beta_schedule(beta_schedule, timesteps, linear_start, linear_end, cosine_s)
        )
        self.num_timesteps = len(self._given_betas)
        self.register_schedule()
        if use_ema:
            self.model_ema = LitEma(self.model)

    def register_schedule(self) -> None:
        """Make the schedule's tables as float32 buffers: at construction, and again for a file that lacks them."""
        betas = self._given_betas
        alpha = np.cumprod(1.0 - betas)
        variance, of_clean, of_noisy = posterior_tables(betas, self.v_posterior)
        tables = (
            betas,
            alpha,
            np.append(1.0, alpha[:-1]),
            np.sqrt(alpha),
            np.sqrt(1.0 - alpha),
            np.log(1.0 - alpha),
            np.sqrt(1.0 / alpha),
            np.sqrt(1.0 / alpha - 1),
            variance,
            np.log(np.maximum(variance, 1e-20)),
            of_clean,
            of_noisy,
        )
        for name, table in zip(SCHEDULE_BUFFERS, tables):
            # from_numpy ignores a default device, so the tables are real even in a model built on 'meta'.
            self.register_buffer(name, torch.from_numpy(table.astype(np.float32)))

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the network's weights are kept in."""
        return next(self.model.parameters()).dtype

    def apply_model(
        self, x_noisy: Tensor, t: Tensor, cond: Optional[Tensor], recall: Optional[Recall] = None
    ) -> Tensor:
        """noise (B,C,h,w), in x's dtype, from x_noisy (B,C,h,w), t (B,) and cond (B,L,D).

        With n texts for each row, cond (n*B,L,D), the noise is (n*B,C,h,w), all rows with their first text before all
        with their second.
        """
        dtype = self.dtype
        context = None if cond is None else cond.to(dtype)
        more = () if recall is None else (recall,)
        return self.model(x_noisy.to(dtype), t, context, *more).to(x_noisy.dtype)

    def get_learned_conditioning(self, c: List[str]) -> Tensor:
        """(B,L,D) for B prompts."""
        encode = getattr(self.cond_stage_model, "encode", self.cond_stage_model)
        return encode(c)

    def encode_first_stage(self, x: Tensor, **how: bool) -> DiagonalGaussianDistribution:
        """The posterior over the latent of image (B,3,H,W) in [-1,1]; `how` is the first stage's, as `in_strips`."""
        return self.first_stage_model.encode(x, **how)

    def get_first_stage_encoding(self, encoder_posterior: Union[DiagonalGaussianDistribution, Tensor]) -> Tensor:
        """A scaled latent (B,C,h,w): a draw from a posterior, or a latent given."""
        if isinstance(encoder_posterior, DiagonalGaussianDistribution):
            encoder_posterior = encoder_posterior.sample()
        return self.scale_factor * encoder_posterior

    def decode_first_stage(self, z: Tensor, **how: bool) -> Tensor:
        """image (B,3,H,W) from a scaled latent (B,C,h,w); `how` is the first stage's, as `in_strips`."""
        dtype = next(self.first_stage_model.parameters()).dtype
        return self.first_stage_model.decode(z.to(dtype) / self.scale_factor, **how)

    def q_sample(self, x_start: Tensor, t: Tensor, noise: Optional[Tensor] = None) -> Tensor:
        """x_start (B,C,h,w) noised to timesteps t (B,) (DDPM eq. 4)."""
        noise = torch.randn_like(x_start) if noise is None else noise
        signal = self.sqrt_alphas_cumprod[t][:, None, None, None]
        return signal * x_start + self.sqrt_one_minus_alphas_cumprod[t][:, None, None, None] * noise

    @contextmanager
    def ema_scope(self, context: Optional[str] = None) -> Iterator[None]:
        """Inside the block the network has its averaged weights, if it keeps any."""
        if not hasattr(self, "model_ema"):
            yield
            return
        with self.model_ema.swapped_into(self.model):
            yield
