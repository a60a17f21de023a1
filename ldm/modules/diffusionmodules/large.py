"""The first stage's two halves for large pictures: the same numbers from a fraction of the memory.

GroupNorm divides by what it sees of a picture, so tiles decoded each on its own come out in different colours, with
seams between them. Here every layer sees the whole picture, a strip of it at a time (`strips`). Of each level one map
is kept; its strips are let go as those of the next map take their place. What is too large to be kept beside it is
computed again where it is needed, which is once for statistics and once for use.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ldm.modules.attention import attend
from ldm.modules.diffusionmodules.model import AttnBlock, Decoder, Encoder, ResnetBlock, tokens
from ldm.modules.diffusionmodules.slots import Slots
from ldm.modules.diffusionmodules.strips import (
    FeatureMap,
    Reach,
    added,
    behind,
    in_memory,
    kept_within,
    normalised,
    remembered,
    replaced,
)

# Numbers of the maps in memory, as a multiple of the largest map that a level ends with. That one has to be there; with
# more, less is computed twice, but already a quarter more would be a fourth of what decoding at once takes.
ROOM = 1.0
# What is worked on at once beside them: so many numbers, or this part of that largest map, whichever is less. Half of
# it computes more rows twice; twice that takes more memory, and new pages of it for every strip.
STRIP_ELEMENTS = 2**24
STRIPS = 16

LOOKS = Reach(halo=1)  # a convolution of 3x3


def largest_map(stages: Any, places: int) -> int:
    """The numbers in the largest map of a decoder's or an encoder's levels, for a picture of so many places."""
    inputs = [stage.block[0].norm1.num_channels * places // 4**level for level, stage in enumerate(stages)]
    return max(*inputs, _largest_result(stages, places))


def decode_in_strips(decoder: Decoder, z: Tensor) -> Tensor:
    """What `decoder` makes of latents (B,z_channels,h,w), within rounding."""
    return torch.cat([_decode(decoder, each) for each in z.split(1)])


def encode_in_strips(encoder: Encoder, x: Tensor) -> Tensor:
    """What `encoder` makes of images (B,in_channels,H,W), whose sides its factor divides, within rounding."""
    return torch.cat([_encode(encoder, each) for each in x.split(1)])


def _decode(decoder: Decoder, z: Tensor) -> Tensor:
    factor = 2 ** (len(decoder.up) - 1)
    largest = _largest_result(decoder.up, z.shape[2] * z.shape[3] * factor**2)
    room = int(ROOM * largest)
    x = replaced(behind(decoder.conv_in, _start(z, largest), decoder.mid.block_1.norm1.num_channels, reach=LOOKS))
    x = _middle(decoder.mid, x, room)
    stages: Any = decoder.up
    for stage in reversed(stages):
        x = _stage(stage, x, room)
        if hasattr(stage, "upsample"):
            larger = behind(stage.upsample, x, x.channels, reach=Reach(halo=1, up=2))
            x = replaced(larger) if larger.elements <= room else remembered(larger)
    image = _joined(_activated(decoder.norm_out, decoder.conv_out, x, x.channels))
    return torch.tanh(image) if decoder.tanh_out else image


def _encode(encoder: Encoder, image: Tensor) -> Tensor:
    largest = _largest_result(encoder.down, image.shape[2] * image.shape[3])
    room = int(ROOM * largest)
    stages: Any = encoder.down
    x = replaced(behind(encoder.conv_in, _start(image, largest), stages[0].block[0].norm1.num_channels, reach=LOOKS))
    for stage in stages:
        x = _stage(stage, x, room)
        if hasattr(stage, "downsample"):
            x = replaced(behind(stage.downsample, x, x.channels, reach=Reach(halo=1, down=2)))
    x = _middle(encoder.mid, x, room)
    return _joined(_activated(encoder.norm_out, encoder.conv_out, x, x.channels))


def _start(x: Tensor, largest: int) -> FeatureMap:
    return in_memory([x], Slots(max(1, min(STRIP_ELEMENTS, largest // STRIPS))))


def _largest_result(stages: Any, places: int) -> int:
    return max(stage.block[-1].norm2.num_channels * places // 4**level for level, stage in enumerate(stages))


def _stage(stage: Any, x: FeatureMap, room: int) -> FeatureMap:
    for i, block in enumerate(stage.block):
        x = _residual(block, x, room)
        if stage.attends:
            x = _attention(stage.attn[i], x)
    return x


def _middle(middle: Any, x: FeatureMap, room: int) -> FeatureMap:
    x = _attention(middle.attn_1, _residual(middle.block_1, x, room))
    return _residual(middle.block_2, x, room)


def _residual(block: ResnetBlock, x: FeatureMap, room: int) -> FeatureMap:
    channels = block.norm2.num_channels
    h = _activated(block.norm1, block.conv1, x, channels)
    h = kept_within(h, room - sum(kept.elements for kept in x.kept))
    h = _activated(block.norm2, block.conv2, h, channels)
    return replaced(added(behind(block.nin_shortcut, x, channels) if hasattr(block, "nin_shortcut") else x, h))


def _activated(norm: nn.GroupNorm, conv: nn.Module, x: FeatureMap, channels: int) -> FeatureMap:
    normalise = normalised(norm, x)
    return behind(
        conv, x, channels, reach=LOOKS, activation=lambda rows: functional.silu(normalise(rows), inplace=True)
    )


def _attention(block: nn.Module, x: FeatureMap) -> FeatureMap:
    """Every place looks at all places: keys and values are in memory, queries come a strip at a time."""
    if not isinstance(block, AttnBlock):
        return x
    normalise = normalised(block.norm, x)
    strips = [partial(x.strip, *span) for span in x.spans()]
    k, v = (torch.cat([tokens(conv(normalise(strip()))) for strip in strips], dim=2) for conv in (block.k, block.v))

    def attended(rows: Tensor) -> Tensor:
        out = attend(tokens(block.q(normalise(rows))), k, v)
        return rows + block.proj_out(out[:, 0].transpose(1, 2).reshape(rows.shape))

    return replaced(behind(attended, x, x.channels))


def _joined(x: FeatureMap) -> Tensor:
    return torch.cat([x.strip(*span) for span in x.spans()], dim=2)
