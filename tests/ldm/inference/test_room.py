"""Pictures are sampled together as far as the memory of the card goes, which is found without losing one of them."""

from __future__ import annotations

import pytest

from ldm.inference.room import SHARE, Line, Rooms, measure, shared_out
from tests.cards import FakeMemory


def room(memory: FakeMemory, pictures: int) -> int:
    return Rooms(memory).room("a kind", pictures, memory.run)


def test_what_fits_is_measured_by_a_single_run_of_just_that_size():
    memory = FakeMemory(total=100, fixed=10, each=10)
    assert room(memory, 8) == 8
    assert memory.sizes == [8]


@pytest.mark.parametrize(("total", "expected"), [(100, 8), (99, 7), (50, 3), (39, 2), (20, 1), (15, 1)])
def test_what_does_not_fit_is_as_many_as_the_line_through_one_and_two_says(total, expected):
    """Of 100 bytes a tenth stays free, so 90 are for 10 and 8 times 10."""
    memory = FakeMemory(total=total, fixed=10, each=10)
    assert room(memory, 16) == expected
    assert memory.sizes == [16, 1, 2]


@pytest.mark.parametrize("total", range(20, 200, 7))
def test_whatever_it_says_fits_and_leaves_a_tenth(total):
    memory = FakeMemory(total=total, fixed=7, each=11)
    found = room(memory, 12)
    assert found == 12 or 7 + 11 * (found + 1) > SHARE * total
    assert 7 + 11 * found <= max(SHARE * total, 18)


def test_what_fits_but_leaves_too_little_is_not_taken():
    memory = FakeMemory(total=100, fixed=15, each=10)
    assert room(memory, 8) == 7


def test_a_single_picture_is_not_measured():
    memory = FakeMemory(total=1)
    assert room(memory, 1) == 1
    assert memory.sizes == []


def test_of_two_that_do_not_fit_one_is_tried_without_another_look():
    memory = FakeMemory(total=15, each=10)
    assert room(memory, 2) == 1
    assert memory.sizes == [2]


def test_a_kind_is_measured_once_and_a_smaller_batch_of_it_never():
    memory = FakeMemory(total=100, each=10)
    rooms = Rooms(memory)
    assert [rooms.room("wide", count, memory.run) for count in (8, 8, 3, 12, 12, 5)] == [8, 8, 3, 9, 9, 5]
    assert memory.sizes == [8, 12, 1, 2]
    assert rooms.room("high", 2, memory.run) == 2
    assert memory.sizes == [8, 12, 1, 2, 2]


def test_room_is_made_before_anything_is_measured_and_only_then():
    memory, made = FakeMemory(total=100, each=10), []
    rooms = Rooms(memory, lambda: made.append(len(memory.sizes)))
    for count in (8, 8, 3, 12, 12):
        rooms.room("a kind", count, memory.run)
    assert memory.sizes == [8, 12, 1, 2]
    assert made == [0, 1]


def test_without_a_memory_that_is_known_everything_fits():
    assert Rooms(None).room("a kind", 99, lambda pictures: 1 / 0) == 99


def test_pictures_that_take_nothing_more_are_not_limited():
    assert Line.through(50, 50).pictures(100) is None
    assert Line.through(50, 40).pictures(100) is None, "a run that built kernels first may take more than the next"


def test_another_error_than_full_memory_comes_out():
    def broken(pictures):
        raise RuntimeError("HIP error: invalid device function")

    memory = FakeMemory(10)
    with pytest.raises(RuntimeError, match="invalid device function"):
        measure(broken, 1, memory)


@pytest.mark.parametrize(
    ("count", "of_room", "sizes"),
    [(8, 8, [8]), (8, 5, [4, 4]), (10, 4, [3, 3, 4]), (5, 2, [1, 2, 2]), (3, 1, [1, 1, 1])],
)
def test_a_batch_is_shared_out_evenly_in_its_order(count, of_room, sizes):
    parts = shared_out(list(range(count)), of_room)
    assert [len(part) for part in parts] == sizes
    assert [item for part in parts for item in part] == list(range(count))


@pytest.mark.gpu
def test_a_real_card_has_room_for_what_it_says_and_not_for_endless_pictures():
    import torch

    from ldm.inference.runtime import CardMemory, pick_device

    device = pick_device("gpu")
    memory = CardMemory(device)
    each = memory.free() // 10

    def run(pictures):
        return torch.empty(pictures * each, dtype=torch.uint8, device=device)

    assert Rooms(memory).room("a kind", 4, run) == 4
    assert 7 <= Rooms(memory).room("a kind", 1000, run) <= 10
