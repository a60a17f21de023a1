"""Maps in slots are the maps that were put there; what is let go is used again."""

from __future__ import annotations

from typing import List

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ldm.modules.diffusionmodules import slots as module
from ldm.modules.diffusionmodules.slots import Kept, Slots, pieces

ORDERS = [torch.contiguous_format, torch.channels_last]
ROW = 8 * 6


def image(height: int, order: torch.memory_format = torch.contiguous_format) -> Tensor:
    return torch.randn(1, 8, height, 6, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=order)


def kept(x: Tensor, height: int, slots: Slots) -> Kept:
    found = Kept(slots)
    for strip in x.split(height, dim=2):
        found.append([strip])
    return found


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("size", [1, ROW, 2 * ROW + 5, 5 * ROW, 100 * ROW])
@pytest.mark.parametrize("height", [1, 3, 7])
def test_any_rows_are_those_that_were_kept(order, size, height):
    x = image(7, order)
    found = kept(x, height, Slots(size))
    assert found.elements == x.numel()
    for first in range(7):
        for last in range(first + 1, 8):
            rows = found.rows(first, last)
            assert torch.equal(torch.cat(rows, dim=2), x[:, :, first:last])
            assert all((part.stride(1) == 1) == (order is torch.channels_last) for part in rows)


def test_what_one_map_leaves_another_takes():
    slots, x = Slots(2 * ROW), image(12)
    first = kept(x, 3, slots)
    places = {part.data_ptr() for part in first.rows(0, 12)}
    first.release()  # all rows have been asked for: none is
    first.rows(7, 9)
    first.release()  # three slots, which are above row 7
    second = kept(x[:, :, :6], 6, slots)
    assert {part.data_ptr() for part in second.rows(0, 6)} < places
    assert torch.equal(torch.cat(first.rows(6, 12), dim=2), x[:, :, 6:])
    with pytest.raises(AssertionError, match="let go"):
        first.rows(5, 7)
    first.release_all()
    with pytest.raises(AssertionError, match="let go"):
        first.rows(11, 12)


def test_a_copy_is_kept_of_what_was_computed_and_the_given_as_it_is():
    x, found = image(4), Kept(Slots(4 * ROW))
    found.append([x])
    given = Kept(Slots(4 * ROW))
    given.add(x)
    assert found.rows(0, 4)[0].data_ptr() != x.data_ptr()
    assert given.rows(0, 4)[0].data_ptr() == x.data_ptr()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("piece", [1, 2 * ROW, 100 * ROW])
def test_parts_are_joined_and_changed_in_memory_that_is_used_again(order, piece, monkeypatch):
    monkeypatch.setattr(module, "PIECE", piece)
    slots, x = Slots(ROW), image(9, order)
    places: List[int] = []
    for change in (None, functional.silu, functional.relu):
        parts = list(x.split(4, dim=2))
        assert sum(each.shape[2] for each in pieces(parts)) == 9
        joined = slots.joined(parts, change)
        assert joined.is_contiguous(memory_format=order)
        assert torch.allclose(joined, x if change is None else change(x), rtol=1e-6, atol=1e-7)  # by vectors or singly
        places.append(joined.data_ptr())
    assert len(set(places)) == 1
    assert slots.joined([x]) is x
