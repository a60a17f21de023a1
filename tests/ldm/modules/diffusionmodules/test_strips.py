"""Maps by strips give the rows of the whole map, whatever the strips, and let go what is not needed any more."""

from __future__ import annotations

import weakref
from typing import List, Tuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from ldm.modules.diffusionmodules.model import Downsample, Upsample
from ldm.modules.diffusionmodules.slots import Slots
from ldm.modules.diffusionmodules.strips import (
    FeatureMap,
    Reach,
    added,
    behind,
    group_statistics,
    in_memory,
    kept_within,
    normalised,
    remembered,
    replaced,
    spans,
)

# Sums of up to 100 products near 1, which a convolution may add up in another order for another size.
SAME = {"rtol": 0.0, "atol": 1e-12}
FOUR_ROWS = 8 * 6 * 4


def image(height: int, width: int = 6, channels: int = 8) -> Tensor:
    return torch.randn(1, channels, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(height))


def cut(x: Tensor, height: int) -> FeatureMap:
    return in_memory(list(x.split(height, dim=2)), Slots(FOUR_ROWS))


def whole(x: FeatureMap) -> Tensor:
    return x.strip(0, x.height)


def some_rows(height: int) -> List[Tuple[int, int]]:
    return [(first, last) for first in range(height) for last in range(first + 1, height + 1)]


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("height", [1, 2, 3, 7, 64, 99])
@pytest.mark.parametrize("most", [0, 1, 2, 5, 64, 1000])
def test_spans_cover_every_row_once_and_all_but_the_last_are_equal_and_even(height, most):
    found = spans(height, most)
    assert [row for first, last in found for row in range(first, last)] == list(range(height))
    heights = [last - first for first, last in found]
    assert len(set(heights[:-1])) <= 1
    assert all(rows % 2 == 0 for rows in heights[:-1])
    assert heights[-1] <= heights[0] <= max(most + 1, 2)


def test_rows_of_strips_in_memory_are_those_of_the_map():
    x = image(7)
    for first, last in some_rows(7):
        assert torch.equal(cut(x, 3).strip(first, last), x[:, :, first:last])


@pytest.mark.parametrize(
    ("layer", "how"),
    [
        (nn.Conv2d(8, 8, 1), {}),
        (nn.Conv2d(8, 8, 3, padding=1), {"halo": 1}),
        (Upsample(8, with_conv=True), {"halo": 1, "up": 2}),
        (Upsample(8, with_conv=False), {"halo": 1, "up": 2}),
        (Downsample(8, with_conv=True), {"halo": 1, "down": 2}),
        (Downsample(8, with_conv=False), {"halo": 1, "down": 2}),
    ],
)
@pytest.mark.parametrize("height", [2, 4, 10])
def test_any_rows_behind_a_layer_are_those_of_the_whole_result(layer, how, height):
    layer.double()
    x = image(height)
    made = behind(layer, cut(x, 3), 8, reach=Reach(**how))
    expected = layer(x)
    assert (made.channels, made.height, made.width) == expected.shape[1:]
    for first, last in some_rows(made.height):
        assert torch.allclose(made.strip(first, last), expected[:, :, first:last], **SAME)


def test_a_layer_gets_as_many_rows_at_the_edges_as_elsewhere():
    seen = []

    def layer(rows: Tensor) -> Tensor:
        seen.append(rows.shape[2])
        return rows

    x = behind(layer, cut(image(24), 5), 8, reach=Reach(halo=1))
    assert [x.strip(first, last).shape[2] for first, last in spans(24, 6)] == [6] * 4
    assert seen == [8] * 4


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("height", [1, 2, 13])
def test_statistics_by_strips_are_those_of_the_map(groups, height):
    x = image(13) * 3 + torch.arange(8).view(1, 8, 1, 1) * 50  # means that differ far more than the places do
    mean, variance = group_statistics(cut(x, height), groups)
    variances, means = torch.var_mean(x.view(groups, -1), dim=1, unbiased=False)
    assert torch.allclose(mean, means.repeat_interleave(8 // groups), rtol=1e-12, atol=0)
    assert torch.allclose(variance, variances.repeat_interleave(8 // groups), rtol=1e-12, atol=0)


def test_some_rows_are_normalised_by_all_of_the_map():
    x = image(12)
    norm = nn.GroupNorm(2, 8, eps=1e-6).double()
    for parameter in norm.parameters():
        parameter.data = torch.randn(8, dtype=torch.float64)
    normalise = normalised(norm, cut(x, 5))
    assert torch.allclose(normalise(x[:, :, 3:7]), norm(x)[:, :, 3:7], **SAME)
    assert not torch.allclose(norm(x[:, :, 3:7]), norm(x)[:, :, 3:7], atol=1e-2)  # by its own it would be another


@pytest.mark.parametrize("rows", [0, 1, 5, 13, 20])
def test_rows_are_the_same_whether_they_are_kept_or_made_anew(rows):
    x = image(13)
    conv = nn.Conv2d(8, 8, 3, padding=1).double()
    kept = kept_within(behind(conv, cut(x, 4), 8, reach=Reach(halo=1)), rows * 8 * 6)
    for first, last in some_rows(13):
        assert torch.allclose(kept.strip(first, last), conv(x)[:, :, first:last], **SAME)


def test_what_was_asked_for_last_is_not_made_again():
    asked = []

    def layer(rows: Tensor) -> Tensor:
        asked.append(rows.shape[2])
        return rows

    x = image(9)
    map_ = remembered(behind(layer, cut(x, 4), 8))
    for first, last in [(0, 6), (1, 5), (0, 6), (3, 9), (4, 9)]:
        assert torch.equal(map_.strip(first, last), x[:, :, first:last])
    assert asked == [6, 6]


def test_a_map_that_takes_the_place_of_another_lets_its_strips_go():
    """A residual branch looks 2 rows further: of the old map no more than the strip in work and its neighbours stay."""
    parts = [part.clone() for part in image(40).split(4, dim=2)]
    alive = [weakref.ref(part) for part in parts]
    expected = torch.cat(parts, dim=2)
    conv = nn.Conv2d(8, 8, 3, padding=1).double()
    seen: List[int] = []

    def watched(rows: Tensor) -> Tensor:
        seen.append(sum(each() is not None for each in alive))
        return conv(rows)

    x = in_memory(parts, Slots(FOUR_ROWS))
    del parts
    new = replaced(added(x, behind(watched, behind(conv, x, 8, reach=Reach(halo=1)), 8, reach=Reach(halo=1))))
    assert torch.allclose(whole(new), expected + conv(conv(expected)), **SAME)
    assert seen == [10, 10, 10, 9, 8, 7, 6, 5, 4, 3]
    with pytest.raises(AssertionError, match="let go"):
        x.rows(0, 1)


def test_strips_are_chosen_by_the_largest_map_on_the_way():
    """A layer that makes eight channels of two has four times the numbers of its input in work."""
    slots = Slots(8 * 6 * 4)
    x = in_memory([image(16, channels=2)], slots)
    assert x.spans() == [(0, 16)]
    wide = behind(nn.Conv2d(2, 8, 1).double(), x, 8)
    assert wide.spans() == [(0, 4), (4, 8), (8, 12), (12, 16)]
    narrow = behind(nn.Conv2d(8, 2, 1).double(), wide, 2)
    assert narrow.spans() == wide.spans()
    assert replaced(narrow).spans() == [(0, 16)]


def test_places_are_changed_before_a_layer_looks_at_them():
    x = image(9)
    conv = nn.Conv2d(8, 8, 3, padding=1).double()
    made = behind(conv, cut(x, 4), 8, reach=Reach(halo=1), activation=functional.silu)
    for first, last in some_rows(9):
        assert torch.allclose(made.strip(first, last), conv(functional.silu(x))[:, :, first:last], **SAME)
