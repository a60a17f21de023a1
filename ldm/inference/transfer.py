"""The way of numbers from the machine's memory into a card's.

A card fetches from pinned memory by itself and at the full speed of its bus; from any other the driver copies them into
pinned memory of its own first, while the process waits. So weights go through two pinned buffers that take turns: one
is filled from the file while the card fetches from the other.

What is to be converted is converted as it is filled in: one core makes float16 of 6.7 GiB of float32 a second, where it
copies 4.5 GiB as they are (5.7 and 4.0 with torch 1.10), and half as much is left to be fetched.
"""

from __future__ import annotations

import logging
from typing import Callable, Dict, Iterator, List, Optional, Protocol, Tuple

import torch
from torch import Tensor

from ldm.errors import first_line
from ldm.inference.runtime import lanes_to

log = logging.getLogger(__name__)

BUFFER_BYTES = 2**25
BUFFERS = 2

Wait = Callable[[], None]


class Lanes(Protocol):
    """What pins memory, and what marks a place in the work of a card so that one can wait for it."""

    def buffer(self, count: int, dtype: torch.dtype) -> Tensor: ...

    def mark(self) -> Wait: ...


class Sender:
    """Brings tensors to a device in the dtype asked for. What is there in that dtype already is returned as it is."""

    def __init__(self, device: Optional[torch.device], lanes: Optional[Lanes] = None) -> None:
        """Without `lanes`, as on the way to a CPU, or where the machine pins no memory, torch's own copy is used."""
        self._device = device
        self._lanes = lanes
        self._buffers: Dict[torch.dtype, List[Tensor]] = {}
        self._arrivals: Dict[torch.dtype, List[Optional[Wait]]] = {}
        self._sent = 0

    def send(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """The tensor on the device; `tensor` may be written over as soon as this returns."""
        if self._lanes is None or not tensor.numel() or not self._has_buffers(dtype):
            return tensor.to(device=self._device, dtype=dtype)
        arrived = torch.empty(tensor.shape, dtype=dtype, device=self._device)
        source, target = tensor.reshape(-1), arrived.view(-1)
        for start, end in _pieces(source.numel(), self._buffers[dtype][0].numel()):
            turn = self._sent % BUFFERS
            wait = self._arrivals[dtype][turn]
            if wait is not None:
                wait()
            piece = self._buffers[dtype][turn][: end - start]
            _fill(piece, source[start:end])
            target[start:end].copy_(piece, non_blocking=True)
            self._arrivals[dtype][turn] = self._lanes.mark()
            self._sent += 1
        return arrived

    def _has_buffers(self, dtype: torch.dtype) -> bool:
        assert self._lanes is not None
        if dtype in self._buffers:
            return True
        count = BUFFER_BYTES // torch.empty((), dtype=dtype).element_size()
        try:
            self._buffers[dtype] = [self._lanes.buffer(count, dtype) for _ in range(BUFFERS)]
        except RuntimeError as error:
            log.info("no pinned memory (%s): the driver copies", first_line(error))
            self._lanes = None
            return False
        self._arrivals[dtype] = [None] * BUFFERS
        return True


def sender_to(device: Optional[torch.device]) -> Sender:
    """What brings tensors there; None leaves them where they are."""
    return Sender(device, None if device is None else lanes_to(device))


def send_draw(draw: Tensor, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """A few numbers drawn on the CPU, on the device, without waiting for what the card is at.

    torch keeps the pinned memory until the card has fetched them, and then for the next draw.
    """
    lanes = lanes_to(device)
    if lanes is None:
        return draw.to(device=device, dtype=dtype)
    try:
        pinned = lanes.buffer(draw.numel(), dtype).view(draw.shape)
    except RuntimeError:  # the machine pins no memory, as was said when weights were sent
        return draw.to(device=device, dtype=dtype)
    return pinned.copy_(draw).to(device=device, non_blocking=True)


def _pieces(count: int, largest: int) -> Iterator[Tuple[int, int]]:
    return ((start, min(start + largest, count)) for start in range(0, count, largest))


def _fill(buffer: Tensor, source: Tensor) -> None:
    """Copy, converting. As integers where nothing is to be converted: torch 1.10 copies float16 2.6 times slower."""
    if buffer.dtype is source.dtype and source.element_size() == 2:
        buffer, source = buffer.view(torch.int16), source.view(torch.int16)
    buffer.copy_(source)
