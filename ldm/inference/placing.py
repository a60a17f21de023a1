"""A model that was read, made ready for the device that it is on."""

from __future__ import annotations

import contextlib
from typing import Any, Iterator, List, Optional, Tuple

import torch
from torch import nn

from ldm.errors import DeviceError, first_line
from ldm.inference import trial
from ldm.inference.checkpoint import Leave
from ldm.inference.packing import Packed, can_be_packed, can_pack, pack, unpack
from ldm.inference.replay import Graphs, Replayed
from ldm.inference.room import Memory
from ldm.inference.runtime import Arithmetic, graphs_of, memory_of, settle_card
from ldm.modules import attention


def left_to_packing(device: torch.device, dtype: torch.dtype) -> Optional[Leave]:
    """The layers whose weights `make_ready` will take as the file has them; None where it takes none."""
    if memory_of(device) is not None or not can_pack(dtype):
        return None
    return lambda layer: can_be_packed(layer, dtype)


def make_ready(model: Any, arithmetic: Arithmetic) -> None:
    """Give the model the form that its device computes fastest with, once, before the first picture."""
    memory, graphs = memory_of(model.device), graphs_of(model.device)
    if memory is not None and graphs is not None:
        make_ready_on_card(model, arithmetic, memory, graphs)
        return
    if can_pack(arithmetic.dtype):
        pack(model, arithmetic.dtype)


def make_ready_on_card(model: Any, arithmetic: Arithmetic, memory: Memory, graphs: Graphs) -> None:
    """Settle the card's arithmetic and attention, put the channels last if it likes them so, and record the network."""
    settle_card()
    if arithmetic.channels_last:
        model.to(memory_format=torch.channels_last)
    settle_attention(model.device, arithmetic.dtype, memory)
    model.model.forward = Replayed(model.model.forward, graphs)


def settle_attention(device: torch.device, dtype: torch.dtype, memory: Memory) -> None:
    """Have attention sliced on this type of device where torch's fused kernel would fill its memory.

    In float32, too, in which a picture is tried again: many kernels know half precision alone.
    """
    for each in dict.fromkeys((dtype, torch.float32)):
        if trial.writes_all_scores(device, each, memory.peak):
            attention.UNSLICED.add((device.type, each))


@contextlib.contextmanager
def in_float32(model: Any) -> Iterator[None]:
    """Inside, every parameter is float32, of the value that it had; afterwards all are as before, bit for bit.

    Raises DeviceError where memory is too full to have all as before: a process with such a model must not go on.
    """
    dtype, is_packed = model.dtype, any(isinstance(layer, Packed) for layer in model.modules())
    before: List[Tuple[nn.Parameter, torch.dtype]] = []
    try:
        unpack(model)
        before += [(parameter, parameter.dtype) for parameter in model.parameters()]
        for parameter, _ in before:
            parameter.data = parameter.data.float()
        yield
    finally:
        try:
            for parameter, had in before:
                parameter.data = parameter.data.to(had)
            if is_packed:
                pack(model, dtype)
        except (RuntimeError, MemoryError) as error:
            first = error.__context__  # what came out of the body
            if first is None or isinstance(first, Exception):  # not the end of a process, which is on its way already
                said = first_line(error) if first is None else f"{first_line(first)}; then {first_line(error)}"
                raise DeviceError(f"the model cannot be had back from float32: {said}") from error


def recordings_of(model: Any) -> Optional[Replayed]:
    """What records the network of a model on a card; None on a CPU."""
    forward = model.model.forward
    return forward if isinstance(forward, Replayed) else None
