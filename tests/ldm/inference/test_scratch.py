"""Weights are converted in memory that is used again, and what packing frees goes back to the system."""

from __future__ import annotations

import pytest
import torch

from ldm.inference import scratch
from ldm.inference.scratch import Freed, Scratch


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1), (2, 0, 3, 1)])
@pytest.mark.parametrize("stored", [torch.float16, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("at_once", [1, 100, scratch.CONVERTED_AT_ONCE])
def test_a_scratch_holds_what_a_copy_would_be(at_once, stored, order, monkeypatch):
    monkeypatch.setattr(scratch, "CONVERTED_AT_ONCE", at_once)
    held_in = Scratch(torch.bfloat16)
    for shape in ((7, 5, 3, 3), (2, 3, 1, 1), (40, 24, 3, 3)):
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(stored).permute(*order)
        held = held_in.hold(weight)
        assert held.is_contiguous()
        assert held.dtype is torch.bfloat16
        assert torch.equal(held, weight.to(torch.bfloat16))


def test_a_weight_that_is_as_it_is_packed_from_is_not_copied():
    weight = torch.randn(4, 6, dtype=torch.bfloat16)
    assert Scratch(torch.bfloat16).hold(weight) is weight


def test_what_was_held_within_inference_mode_can_be_written_over_outside():
    weight, held_in = torch.ones(3, 4), Scratch(torch.bfloat16)
    with torch.inference_mode():
        held_in.hold(weight)
    assert torch.equal(held_in.hold(2 * weight).float(), 2 * weight)


def test_freed_weights_are_given_back_every_so_many_bytes(monkeypatch):
    trims, freed = [], Freed()
    monkeypatch.setattr(scratch, "trim_memory", lambda: trims.append(True))
    half = torch.zeros(scratch.FREED_BYTES // 2 // 4)
    for expected in (0, 1, 1, 2):
        freed.add(half)
        assert len(trims) == expected
