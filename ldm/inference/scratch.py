"""Memory on the way of weights from a file into the form that is computed with: used again, and given back."""

from __future__ import annotations

import torch
from torch import Tensor

from ldm.modules.memory import trim_memory

# Numbers that are converted before they are put in another order, few enough for the processor's caches.
CONVERTED_AT_ONCE = 2**19
# After so many freed bytes the C library is told to give them back, which takes it about a millisecond.
FREED_BYTES = 2**25


class Freed:
    """What packing has freed: pieces between others that are in use, which the C library keeps unless it is told.

    Without this a process holds half a GB more once its network was called.
    """

    def __init__(self) -> None:
        self._bytes = 0

    def add(self, weight: Tensor) -> None:
        """As many bytes as a weight has."""
        self._bytes += weight.numel() * weight.element_size()
        if self._bytes >= FREED_BYTES:
            self._bytes = 0
            trim_memory()


class Scratch:
    """Memory in which the weights of a network get the dtype and the order that they are packed from, one by one.

    A piece of its own for each would be fresh from the system, which takes longer to hand it out than all else that is
    done with it. The layers that are not packed yet have the scratch; with the last of them it goes.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._memory = torch.empty(0, dtype=dtype)

    def hold(self, weight: Tensor) -> Tensor:
        """The weight, contiguous and in the dtype, until the next one is held; itself if it is so."""
        if weight.dtype is self.dtype and weight.is_contiguous():
            return weight
        count = weight.numel()
        if self._memory.numel() < count:
            self._memory = torch.empty(0, dtype=self.dtype)  # given back before there is more
            with torch.inference_mode(False):  # what is made within it could be written within it alone
                self._memory = torch.empty(count, dtype=self.dtype)
        held = self._memory[:count].view(weight.shape)
        if weight.is_contiguous():
            return held.copy_(weight)
        # A copy that converts and reorders at once takes twice as long as one after the other.
        rows = max(1, CONVERTED_AT_ONCE * weight.shape[0] // max(count, 1))
        for given, into in zip(torch.split(weight, rows), torch.split(held, rows)):
            into.copy_(given.to(self.dtype))
        return held


freed = Freed()
