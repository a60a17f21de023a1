"""A network that is told to a card in one piece, once it was told often enough in single ones.

A forward pass of a U-Net is about a thousand kernels, and each takes the processor some microseconds to launch. A fast
card with a small batch is done with a kernel before the next is there, and waits. A recording of all launches is
replayed in one, over the same memory, so inputs are copied in and the outcome out. A large batch gains nothing.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from typing import Any, Callable, Dict, Hashable, List, Optional, Protocol, Set, Tuple

import torch
from torch import Tensor

from ldm.errors import first_line
from ldm.inference import trial
from ldm.inference.runtime import release_memory
from ldm.modules.recall import Recall

log = logging.getLogger(__name__)

# A recording costs about as much as three calls. After as many calls as that and some, more are likely.
CALLS_BEFORE = 8
LAUNCHING_SHARE = 0.8  # of a call's time; above it, the card waits for launches
KEPT = 2  # recordings, as each keeps the memory that its call takes

Forward = Callable[..., Tensor]


class Graphs(Protocol):
    """What records the work of a card."""

    def record(self, work: Callable[[], Tensor]) -> Tuple[Callable[[], None], Tensor]: ...

    def wait(self) -> None: ...


class Recording:
    """One call, for inputs of one shape, to be made again for other numbers."""

    def __init__(self, forward: Forward, inputs: Tuple[Tensor, ...], graphs: Graphs) -> None:
        self._inputs = [each.clone() for each in inputs]
        self._replay, self._outcome = graphs.record(lambda: forward(*self._inputs))

    @torch.inference_mode()
    def play(self, inputs: Tuple[Tensor, ...]) -> Tensor:
        """What the call gives for these inputs, in memory of its own."""
        for own, given in zip(self._inputs, inputs):
            own.copy_(given)
        self._replay()
        return self._outcome.clone()


class Replayed:
    """A forward pass of tensors, recorded for each shape that comes often and for which launching is what takes long.

    A recording is used only if it gives what the pass itself gives, bit for bit: so whether a picture was made with
    one does not show. Where the card cannot record the network, all goes on as before, and it is not tried again.
    """

    def __init__(self, forward: Forward, graphs: Graphs, clock: Callable[[], float] = time.perf_counter) -> None:
        self._forward, self._graphs, self._clock = forward, graphs, clock
        self.gave_up = False
        self.forget()

    def forget(self) -> None:
        """Drop what was recorded: it knows its weights by their place in memory, so do it whenever they move."""
        self._recordings: OrderedDict[Hashable, Recording] = OrderedDict()
        self._calls: Dict[Hashable, int] = {}
        self._refused: Set[Hashable] = set()

    @property
    def hold_memory(self) -> bool:
        """Whether anything is recorded, which keeps what its call takes."""
        return bool(self._recordings)

    def give_up(self) -> None:
        """Record nothing more, where memory is short or the card cannot."""
        self.forget()
        self.gave_up = True

    def __call__(self, *inputs: Any, **others: Any) -> Tensor:
        # A recording of all the work is quicker than a part of it kernel by kernel, so nothing is recalled in one.
        recalls = bool(inputs) and isinstance(inputs[-1], Recall) and inputs[-1].is_exact
        tensors = inputs[:-1] if recalls else inputs
        kind = None if others or self.gave_up else _kind(tensors)
        if kind is None or kind in self._refused:
            return self._forward(*inputs, **others)
        if kind in self._recordings:
            self._recordings.move_to_end(kind)
            return self._recordings[kind].play(tensors)
        self._calls[kind] = self._calls.get(kind, 0) + 1
        if self._calls[kind] < CALLS_BEFORE:
            return self._forward(*inputs)
        outcome, launching = self._timed(tensors)
        recording = self._record(tensors, outcome) if launching >= LAUNCHING_SHARE else None
        if recording is None:
            self._refused.add(kind)
        else:
            self._recordings[kind] = recording
            while len(self._recordings) > KEPT:
                self._calls.pop(self._recordings.popitem(last=False)[0])
        return outcome

    def _timed(self, inputs: Tuple[Tensor, ...]) -> Tuple[Tensor, float]:
        """The outcome, and the share of its time after which all was launched."""
        self._graphs.wait()
        start = self._clock()
        outcome = self._forward(*inputs)
        launched = self._clock()
        self._graphs.wait()
        return outcome, (launched - start) / max(self._clock() - start, 1e-9)

    @torch.inference_mode()
    def _record(self, inputs: Tuple[Tensor, ...], outcome: Tensor) -> Optional[Recording]:
        try:
            recording = Recording(self._forward, inputs, self._graphs)
            if torch.equal(recording.play(inputs), outcome):
                log.info("the network is recorded for %s", tuple(inputs[0].shape))
                return recording
            said = "it gives other numbers"
        except RuntimeError as error:
            said = first_line(error)
            self.give_up()  # a failure leaves torch's allocator as it should not be, and would come again
        log.info("no recording of the network for %s: %s", tuple(inputs[0].shape), said)
        release_memory()
        return None


def why_not(graphs: Graphs, device: torch.device, dtype: torch.dtype) -> str:
    """Why a card does not record what networks are made of, in torch's words; nothing where it does."""
    try:
        numbers = trial.numbers(device, dtype)
        trial.computed(numbers)  # libraries do at their first call what cannot be recorded
        again, outcome = graphs.record(lambda: trial.computed(numbers))
        numbers.image.mul_(2)
        again()
        return "" if torch.equal(outcome, trial.computed(numbers)) else "it gives other numbers"
    except RuntimeError as error:
        return first_line(error) or "no reason given"


def _kind(inputs: Tuple[Any, ...]) -> Optional[Hashable]:
    """What inputs must have in common for one recording; None for what is no tensor."""
    described: List[Hashable] = []
    for each in inputs:
        if not isinstance(each, Tensor):
            return None
        described.append((tuple(each.shape), each.stride(), each.dtype))
    return tuple(described)
