"""The two halves of the first stage: Encoder, image (B,3,H,W) to latent moments; Decoder, latent to image.

Each level but the last halves (doubles) the size. Module names are the names of the tensors in a checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, List, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ldm.errors import ConfigError
from ldm.modules.attention import attend
from ldm.modules.diffusionmodules.doubling import DoublingConv2d, repeated
from ldm.modules.diffusionmodules.util import add_into


class Upsample(nn.Module):
    """Twice the size by repeating pixels, then a 3x3 convolution unless `with_conv` is off."""

    def __init__(self, channels: int, *, with_conv: bool) -> None:
        super().__init__()
        self.conv = DoublingConv2d(channels, channels, 3, padding=1) if with_conv else None

    def forward(self, x: Tensor) -> Tensor:
        return repeated(x) if self.conv is None else self.conv(x)


class Downsample(nn.Module):
    """Half the size. The strided convolution is padded on the right and at the bottom only, as SD v1 was trained."""

    def __init__(self, channels: int, *, with_conv: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2) if with_conv else None

    def forward(self, x: Tensor) -> Tensor:
        if self.conv is None:
            return functional.avg_pool2d(x, 2)
        return self.conv(functional.pad(x, (0, 1, 0, 1)))


class ResnetBlock(nn.Module):
    """Two normalised convolutions, added to the input."""

    def __init__(self, in_channels: int, out_channels: int, *, dropout: float, groups: int) -> None:
        super().__init__()
        self.norm1 = _norm(in_channels, groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = _norm(out_channels, groups)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(functional.silu(self.norm1(x), inplace=True))
        h = self.conv2(self.dropout(functional.silu(self.norm2(h), inplace=True)))
        return add_into(h, self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttnBlock(nn.Module):
    """Self-attention over all places with one head, added to the input."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = _norm(channels, groups)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (tokens(conv(h)) for conv in (self.q, self.k, self.v))
        return add_into(self.proj_out(attend(q, k, v)[:, 0].transpose(1, 2).reshape(x.shape)), x)


def tokens(x: Tensor) -> Tensor:
    """(B,C,H,W) -> (B,1,H*W,C), contiguous: of others torch's fused kernel writes all scores into memory."""
    return x.flatten(2).transpose(1, 2)[:, None].contiguous()


def make_attn(channels: int, attn_type: str, groups: int) -> nn.Module:
    """The block that an `attn_type` of the schema names."""
    if attn_type == "vanilla":
        return AttnBlock(channels, groups)
    if attn_type == "none":
        return nn.Identity()
    raise ConfigError(f"ddconfig attn_type must be 'vanilla' or 'none', got {attn_type!r}")


@dataclass(frozen=True)
class FirstStageDimensions:
    """The schema's `ddconfig`, one for both halves.

    `norm_groups` is not in the schema: with fewer than 64 channels its 32 groups would have one channel each, and
    normalise away how bright and what colour a plain picture is.
    """

    ch: int
    out_ch: int
    num_res_blocks: int
    in_channels: int
    z_channels: int
    resolution: int
    attn_resolutions: Sequence[int] = ()
    ch_mult: Sequence[int] = (1, 2, 4, 8)
    dropout: float = 0.0
    resamp_with_conv: bool = True
    double_z: bool = True
    attn_type: str = "vanilla"
    tanh_out: bool = False
    norm_groups: int = 32


class Encoder(nn.Module):
    """Image (B,in_channels,H,W) to moments (B,2*z_channels,h,w). Parameters: `FirstStageDimensions`."""

    def __init__(self, **ddconfig: Any) -> None:
        super().__init__()
        dims = FirstStageDimensions(**ddconfig)
        self.conv_in = nn.Conv2d(dims.in_channels, dims.ch, 3, padding=1)
        self.down = nn.ModuleList()
        channels = dims.ch
        for level, mult in enumerate(dims.ch_mult):
            stage = _Stage(dims, level)
            for _ in range(dims.num_res_blocks):
                stage.append(channels, dims.ch * mult)
                channels = dims.ch * mult
            if level != len(dims.ch_mult) - 1:
                stage.downsample = Downsample(channels, with_conv=dims.resamp_with_conv)
            self.down.append(stage)
        self.mid = _Middle(channels, dims)
        self.norm_out = _norm(channels, dims.norm_groups)
        self.conv_out = nn.Conv2d(channels, 2 * dims.z_channels if dims.double_z else dims.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for stage in self.down:
            h = stage(h)
            if hasattr(stage, "downsample"):
                h = stage.downsample(h)  # type: ignore[operator]  # a ModuleList forgets _Stage
        return self.conv_out(functional.silu(self.norm_out(self.mid(h)), inplace=True))


class Decoder(nn.Module):
    """Latent (B,z_channels,h,w) to image (B,out_ch,H,W). Parameters: `FirstStageDimensions`."""

    def __init__(self, **ddconfig: Any) -> None:
        super().__init__()
        dims = FirstStageDimensions(**ddconfig)
        self.tanh_out = dims.tanh_out
        channels = dims.ch * dims.ch_mult[-1]
        self.conv_in = nn.Conv2d(dims.z_channels, channels, 3, padding=1)
        self.mid = _Middle(channels, dims)
        stages: List[_Stage] = []
        for level, mult in reversed(list(enumerate(dims.ch_mult))):
            stage = _Stage(dims, level)
            for _ in range(dims.num_res_blocks + 1):
                stage.append(channels, dims.ch * mult)
                channels = dims.ch * mult
            if level:
                stage.upsample = Upsample(channels, with_conv=dims.resamp_with_conv)
            stages.insert(0, stage)
        self.up = nn.ModuleList(stages)
        self.norm_out = _norm(channels, dims.norm_groups)
        self.conv_out = nn.Conv2d(channels, dims.out_ch, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))
        for stage in reversed(self.up):
            h = stage(h)
            if hasattr(stage, "upsample"):
                h = stage.upsample(h)  # type: ignore[operator]  # likewise
        image = self.conv_out(functional.silu(self.norm_out(h), inplace=True))
        return torch.tanh(image) if self.tanh_out else image


class _Stage(nn.Module):
    """One level: residual blocks, each followed by attention if the level has it."""

    def __init__(self, dims: FirstStageDimensions, level: int) -> None:
        super().__init__()
        self.dims = dims
        self.attends = dims.resolution // 2**level in dims.attn_resolutions
        self.block = nn.ModuleList()
        self.attn = nn.ModuleList()

    def append(self, channels: int, out_channels: int) -> None:
        self.block.append(_resnet_block(channels, out_channels, self.dims))
        if self.attends:
            self.attn.append(_attention(out_channels, self.dims))

    def forward(self, h: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            h = block(h)
            if self.attends:
                h = self.attn[i](h)
        return h


class _Middle(nn.Module):
    def __init__(self, channels: int, dims: FirstStageDimensions) -> None:
        super().__init__()
        self.block_1 = _resnet_block(channels, channels, dims)
        self.attn_1 = _attention(channels, dims)
        self.block_2 = _resnet_block(channels, channels, dims)

    def forward(self, h: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(h)))


def _resnet_block(channels: int, out_channels: int, dims: FirstStageDimensions) -> ResnetBlock:
    return ResnetBlock(channels, out_channels, dropout=dims.dropout, groups=dims.norm_groups)


def _attention(channels: int, dims: FirstStageDimensions) -> nn.Module:
    return make_attn(channels, dims.attn_type, dims.norm_groups)


def _norm(channels: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, channels, eps=1e-6)
