"""What a picture would be computed with on this machine, in words: what the probes chose, and what they did without."""

from __future__ import annotations

from typing import Dict, List

import torch

from ldm.inference.packing import can_pack
from ldm.inference.placing import settle_attention
from ldm.inference.replay import why_not
from ldm.inference.room import Memory
from ldm.inference.runtime import (
    Precision,
    choose_arithmetic,
    describe_device,
    describe_torch,
    graphs_of,
    memory_of,
    pick_device,
)
from ldm.modules.attention import Kernel, attend_by_head, attend_in_slices, attention_kernel

ATTENTION: Dict[Kernel, str] = {
    attend_in_slices: "plain operators in slices of the query places",
    attend_by_head: "plain operators, one head and 512 query places at a time",
}
FUSED = "torch's fused kernel"


def describe_kernels(device: str, precision: Precision) -> List[str]:
    """A line each: torch, the device, the dtype, attention, and on a CPU the packing of weights.

    On a card the last lines are its free memory and whether its launches can be recorded.
    `device` is one of DEVICES in runtime.py. Raises DeviceError for a card that is not here.
    """
    place = pick_device(device)
    arithmetic = choose_arithmetic(place, precision)
    card_memory, graphs = memory_of(place), graphs_of(place)
    if card_memory is not None:
        settle_attention(place, arithmetic.dtype, card_memory)
    kernel = attention_kernel(place.type, arithmetic.dtype, trains=False)
    lines = [
        f"torch {torch.__version__}, {describe_torch()}",
        f"device: {describe_device(place)}",
        f"arithmetic: {arithmetic}",
        f"attention: {ATTENTION.get(kernel, FUSED)}",
    ]
    if card_memory is not None and graphs is not None:
        return [*lines, *_card_lines(card_memory, why_not(graphs, place, arithmetic.dtype))]
    packed = "packed once" if can_pack(arithmetic.dtype) else "as they are: this torch takes no packed ones"
    return [*lines, f"weights: {packed}"]


def _card_lines(memory: Memory, reason: str) -> List[str]:
    launches = f"one by one ({reason})" if reason else "recorded, for shapes that come often and keep the card waiting"
    return [f"memory: {memory.free() / 2**30:.1f} GiB free", f"launches: {launches}"]
