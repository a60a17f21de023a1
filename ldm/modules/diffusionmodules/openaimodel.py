"""The U-Net of SD v1: noise (B,4,h,w) predicted from a noisy latent (B,4,h,w), timesteps (B,) and text (B,L,D).

The text may have n rows for each of the latent, first one of every row, then the next: guidance asks for the noise of
one latent with two texts. Up to the first look at the words both are the same, and computed once.


Down through `channel_mult` levels, a middle, and up again; every block on the way up also gets the map that the
block opposite made on the way down. Module names are the names of the tensors in a checkpoint.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, ClassVar, List, Mapping, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from ldm.errors import ConfigError
from ldm.modules.attention import SpatialTransformer, zeroed
from ldm.modules.diffusionmodules.doubling import DoublingConv2d, repeated
from ldm.modules.diffusionmodules.util import add_into, rows_like, timestep_embedding
from ldm.modules.recall import Recall


class Upsample(nn.Module):
    """Twice the size, or just the size asked for, by repeating pixels; then a 3x3 convolution."""

    def __init__(self, channels: int, *, use_conv: bool) -> None:
        super().__init__()
        self.conv = DoublingConv2d(channels, channels, 3, padding=1) if use_conv else None

    def forward(self, x: Tensor, size: Optional[Sequence[int]] = None) -> Tensor:
        return repeated(x, size) if self.conv is None else self.conv(x, size)


class Downsample(nn.Module):
    """Half the size, an odd side rounded up, by a strided convolution or by averaging."""

    def __init__(self, channels: int, *, use_conv: bool) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1) if use_conv else nn.AvgPool2d(2, ceil_mode=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class ResBlock(nn.Module):
    """Two convolutions with the timestep code (B,E) added, or as scale and shift, between them; added to the input."""

    def __init__(
        self,
        channels: int,
        emb_channels: int,
        out_channels: int,
        *,
        dropout: float = 0.0,
        use_scale_shift_norm: bool = False,
        resample: Optional[nn.Module] = None,
        groups: int = 32,
    ) -> None:
        super().__init__()
        self.use_scale_shift_norm = use_scale_shift_norm
        self.resample = resample
        self.in_layers = nn.Sequential(
            nn.GroupNorm(groups, channels), nn.SiLU(inplace=True), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(
            nn.SiLU(), nn.Linear(emb_channels, 2 * out_channels if use_scale_shift_norm else out_channels)
        )
        self.out_layers = nn.Sequential(
            nn.GroupNorm(groups, out_channels),
            nn.SiLU(inplace=True),
            nn.Dropout(dropout),
            zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        same = channels == out_channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor, size: Optional[Sequence[int]] = None) -> Tensor:
        """`size` (h,w): of the outcome, where the block makes its map larger; None doubles it."""
        norm, silu, conv = self.in_layers
        h = silu(norm(x))
        if self.resample is not None:
            sizes = (size,) if isinstance(self.resample, Upsample) else ()
            h, x = self.resample(h, *sizes), self.resample(x, *sizes)
        h = conv(h)
        code = rows_like(self.emb_layers(emb), h).to(h.dtype)[:, :, None, None]
        if self.use_scale_shift_norm:
            scale, shift = code.chunk(2, dim=1)
            h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
        else:
            h = self.out_layers(add_into(h, code))
        return add_into(h, self.skip_connection(x))


class TimestepEmbedSequential(nn.Sequential):
    """Hands the timestep code and the text to those of its layers that take them."""

    def forward(  # type: ignore[override]  # Sequential.forward takes one input
        self,
        x: Tensor,
        emb: Tensor,
        context: Optional[Tensor],
        recall: Optional[Recall] = None,
        size: Optional[Sequence[int]] = None,
    ) -> Tensor:
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, emb, size)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context, recall)
            elif isinstance(layer, Upsample):
                x = layer(x, size)
            else:
                x = layer(x)
        return x


@dataclass(frozen=True)
class Blocks:
    """How the blocks of one network are made: what all of them share. `emb` is the width of the timestep code."""

    emb: int
    dropout: float
    use_scale_shift_norm: bool
    resblock_updown: bool
    conv_resample: bool
    num_heads: int
    num_head_channels: int
    transformer_depth: int
    context_dim: Optional[int]
    norm_groups: int

    def __post_init__(self) -> None:
        if (self.num_heads == -1) == (self.num_head_channels == -1):
            raise ConfigError(
                "unet_config needs one of num_heads and num_head_channels, "
                f"got {self.num_heads} and {self.num_head_channels}"
            )
        for name in ("num_heads", "num_head_channels"):
            if getattr(self, name) != -1 and getattr(self, name) < 1:
                raise ConfigError(f"{name} of unet_config must be at least 1, got {getattr(self, name)}")

    def residual(self, channels: int, out_channels: int, resample: Optional[nn.Module] = None) -> ResBlock:
        return ResBlock(
            channels,
            self.emb,
            out_channels,
            dropout=self.dropout,
            use_scale_shift_norm=self.use_scale_shift_norm,
            resample=resample,
            groups=self.norm_groups,
        )

    def transformer(self, channels: int) -> SpatialTransformer:
        heads = channels // self.num_head_channels if self.num_heads == -1 else self.num_heads
        if not 1 <= heads <= channels:
            raise ConfigError(
                f"unet_config's heads are too large for a level of {channels} channels: num_heads is {self.num_heads}, "
                f"num_head_channels {self.num_head_channels} (-1: not given)"
            )
        # The schema's dropout reaches the residual blocks alone.
        return SpatialTransformer(
            channels,
            heads,
            channels // heads,
            depth=self.transformer_depth,
            context_dim=self.context_dim,
            groups=self.norm_groups,
        )

    def stage(self, channels: int, out_channels: int, *, attends: bool) -> List[nn.Module]:
        """A residual block, and attention to the text where the level has it."""
        residual = self.residual(channels, out_channels)
        return [residual, self.transformer(out_channels)] if attends else [residual]

    def resize(self, channels: int, kind: Any) -> nn.Module:
        if self.resblock_updown:
            return self.residual(channels, channels, resample=kind(channels, use_conv=False))
        resized: nn.Module = kind(channels, use_conv=self.conv_resample)
        return resized


class UNetModel(nn.Module):
    """Parameters as the CompVis schema names them.

    `attention_resolutions` are factors of downsampling (1, 2, 4 ...) at which the text is attended to. `image_size`,
    `use_checkpoint` and `legacy` are accepted for the schema's sake and change nothing: any size runs, memory for
    gradients is not traded here, and head widths always follow from the channels, as in every config with text.
    `norm_groups` is not in the schema: narrow networks need fewer groups. `FIXED`: what may stand in a YAML with this
    value only.
    """

    FIXED: ClassVar[Mapping[str, Any]] = {
        "dims": 2, "n_embed": None, "num_classes": None, "num_heads_upsample": -1, "use_fp16": False,
        "use_new_attention_order": False,
    }  # fmt: skip

    def __init__(
        self,
        in_channels: int,
        model_channels: int,
        out_channels: int,
        num_res_blocks: int,
        attention_resolutions: Sequence[int],
        image_size: Any = None,
        dropout: float = 0.0,
        channel_mult: Sequence[int] = (1, 2, 4, 8),
        conv_resample: bool = True,
        use_checkpoint: bool = False,
        num_heads: int = -1,
        num_head_channels: int = -1,
        use_scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        use_spatial_transformer: bool = False,
        transformer_depth: int = 1,
        context_dim: Optional[int] = None,
        legacy: bool = True,
        norm_groups: int = 32,
    ) -> None:
        super().__init__()
        refuse_what_is_empty(channel_mult, model_channels, num_res_blocks)
        if attention_resolutions and not use_spatial_transformer:
            raise ConfigError("unet_config needs use_spatial_transformer: True; networks without text are not built")
        self.in_channels, self.out_channels, self.model_channels = in_channels, out_channels, model_channels
        self.context_dim = context_dim
        emb = model_channels * 4
        self.time_embed = nn.Sequential(nn.Linear(model_channels, emb), nn.SiLU(), nn.Linear(emb, emb))
        blocks = Blocks(
            emb=emb,
            dropout=dropout,
            use_scale_shift_norm=use_scale_shift_norm,
            resblock_updown=resblock_updown,
            conv_resample=conv_resample,
            num_heads=num_heads,
            num_head_channels=num_head_channels,
            transformer_depth=transformer_depth,
            context_dim=context_dim,
            norm_groups=norm_groups,
        )
        widths = [mult * model_channels for mult in channel_mult]
        attends = [2**level in attention_resolutions for level in range(len(widths))]
        self.attends_to_largest = attends[0]

        first = TimestepEmbedSequential(nn.Conv2d(in_channels, model_channels, 3, padding=1))
        self.input_blocks, skips = way_down(blocks, first, widths, attends, num_res_blocks)
        deepest = widths[-1]
        self.middle_block = TimestepEmbedSequential(
            blocks.residual(deepest, deepest), blocks.transformer(deepest), blocks.residual(deepest, deepest)
        )
        self.output_blocks = way_up(blocks, skips, widths, attends, num_res_blocks)
        self.out = nn.Sequential(
            nn.GroupNorm(norm_groups, widths[0]),
            nn.SiLU(inplace=True),
            zeroed(nn.Conv2d(widths[0], out_channels, 3, padding=1)),
        )

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Optional[Tensor] = None,
        recall: Optional[Recall] = None,
    ) -> Tensor:
        """noise (n*B,C,h,w); a cache that holds a map stands for the deep blocks, an empty one gets theirs."""
        code = timestep_embedding(timesteps, self.model_channels)
        emb = self.time_embed(code.to(next(self.time_embed.parameters()).dtype))
        cache = None if recall is None else recall.cache
        known = None if cache is None else cache.map
        depth = len(self.input_blocks) if cache is None or known is None else cache.depth
        skips: List[Tensor] = []
        h = x
        for block in itertools.islice(self.input_blocks, depth):
            h = block(h, emb, context, recall)
            skips.append(h)
        h = self.middle_block(h, emb, context, recall) if known is None else known
        for block in itertools.islice(self.output_blocks, len(self.output_blocks) - depth, None):
            if cache is not None and len(skips) == cache.depth:
                cache.map = h
            h = torch.cat([h, rows_like(skips.pop(), h)], dim=1)
            # The next map on the way down gives the size: a side that was odd there comes back odd.
            h = block(h, emb, context, recall, skips[-1].shape[2:] if skips else None)
        return self.out(h)


def refuse_what_is_empty(channel_mult: Sequence[int], model_channels: int, num_res_blocks: int) -> None:
    """Raise ConfigError for numbers of which no network can be made."""
    if not channel_mult or min([*channel_mult, model_channels, num_res_blocks]) < 1:
        raise ConfigError(
            "unet_config needs one channel_mult or more, and those, model_channels and num_res_blocks at least 1; "
            f"got {list(channel_mult)}, {model_channels} and {num_res_blocks}"
        )


def way_down(
    blocks: Blocks, first: nn.Module, widths: Sequence[int], attends: Sequence[bool], num_res_blocks: int
) -> Tuple[nn.ModuleList, List[int]]:
    """The blocks from the widest map to the smallest, and how many channels each hands across to the way up."""
    path = nn.ModuleList([first])
    channels = first[0].out_channels  # type: ignore[index]  # a TimestepEmbedSequential
    skips = [channels]
    for level, width in enumerate(widths):
        for _ in range(num_res_blocks):
            path.append(TimestepEmbedSequential(*blocks.stage(channels, width, attends=attends[level])))
            channels = width
            skips.append(channels)
        if level != len(widths) - 1:
            path.append(TimestepEmbedSequential(blocks.resize(channels, Downsample)))
            skips.append(channels)
    return path, skips


def way_up(
    blocks: Blocks, skips: Sequence[int], widths: Sequence[int], attends: Sequence[bool], num_res_blocks: int
) -> nn.ModuleList:
    """The blocks from the smallest map to the widest, each fed with the map that its opposite handed across."""
    path = nn.ModuleList()
    across = list(skips)
    channels = widths[-1]
    for level, width in reversed(list(enumerate(widths))):
        for i in range(num_res_blocks + 1):
            layers = blocks.stage(channels + across.pop(), width, attends=attends[level])
            channels = width
            if level and i == num_res_blocks:
                layers.append(blocks.resize(channels, Upsample))
            path.append(TimestepEmbedSequential(*layers))
    return path
