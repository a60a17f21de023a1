"""Tokens that are alike attend as one; what is done is what the paper says, whatever the size of the map."""

from __future__ import annotations

from typing import List, Tuple

import pytest
import torch
from torch import Tensor

from ldm.modules import token_merging
from ldm.modules.attention import SpatialTransformer
from ldm.modules.recall import Recall
from ldm.modules.token_merging import TokenMerging, parted
from tests.ldm.modules.diffusionmodules.test_openaimodel import unet
from tests.rounding import needs_bfloat16_sums

SIZES = [(4, 4), (5, 4), (7, 9), (1, 6), (1, 1)]
CPU = torch.device("cpu")


def tokens(height: int, width: int, rows: int = 2, channels: int = 6) -> Tensor:
    return torch.randn((rows, height * width, channels), generator=torch.Generator().manual_seed(0))


def merging(ratio: float, height: int, width: int) -> Recall:
    recall = Recall()
    recall.merging = TokenMerging(ratio, height, width, 0)
    return recall


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("seed", [0, 981])
def test_one_place_of_every_four_is_a_destination_and_no_token_is_lost(height: int, width: int, seed: int) -> None:
    destinations, sources = parted(height, width, seed, CPU)
    assert sorted([*destinations.tolist(), *sources.tolist()]) == list(range(height * width))
    squares = {(int(place) // width // 2, int(place) % width // 2) for place in destinations}
    assert len(squares) == len(destinations) == -(-height // 2) * -(-width // 2)


def test_the_destinations_are_drawn_anew_for_each_timestep_and_the_same_way_again() -> None:
    first, again, other = (parted(16, 16, seed, CPU)[0] for seed in (981, 981, 961))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.75])
def test_so_many_tokens_are_left_and_all_come_back(height: int, width: int, ratio: float) -> None:
    x = tokens(height, width)
    matching = TokenMerging(ratio, height, width, 0).match(x)
    merged = matching.merge(x)
    sources = len(matching.sources)
    assert merged.shape[1] == x.shape[1] - min(int(ratio * x.shape[1]), sources)
    assert matching.unmerge(merged).shape == x.shape


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_what_is_not_merged_comes_back_bit_for_bit(height: int, width: int) -> None:
    x = tokens(height, width)
    matching = TokenMerging(0.0, height, width, 0).match(x)
    assert torch.equal(matching.unmerge(matching.merge(x)), x)


def test_tokens_that_are_equal_lose_nothing() -> None:
    colours = tokens(2, 2)
    x = colours.unflatten(1, (2, 2)).repeat_interleave(2, dim=1).repeat_interleave(2, dim=2).flatten(1, 2)
    matching = TokenMerging(0.75, 4, 4, 0).match(x)
    assert matching.merge(x).shape[1] == 4
    # A mean of equal numbers is rounded once more.
    assert torch.allclose(matching.unmerge(matching.merge(x)), x, atol=1e-6)


def by_definition(x: Tensor, ratio: float, parts: Tuple[Tensor, Tensor]) -> Tensor:
    """x (N,C) merged and unmerged, a token at a time."""
    destinations, sources = (part.tolist() for part in parts)
    unit = x / x.norm(dim=1, keepdim=True)
    nearest = {s: max(destinations, key=lambda d: float(unit[s] @ unit[d])) for s in sources}
    ranked = sorted(sources, key=lambda s: -float(unit[s] @ unit[nearest[s]]))
    merged = ranked[: int(ratio * len(x))]
    out = x.clone()
    for d in destinations:
        group = [d, *(s for s in merged if nearest[s] == d)]
        out[group] = x[group].mean(dim=0)
    return out


@pytest.mark.parametrize(("height", "width"), [(4, 4), (5, 7), (6, 6)])
@pytest.mark.parametrize("slice_elements", [1, 2**26])
def test_each_source_goes_to_its_nearest_destination_the_likest_first(
    height: int, width: int, slice_elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_merging, "SLICE_ELEMENTS", slice_elements)
    x = tokens(height, width)
    matching = TokenMerging(0.5, height, width, 7).match(x)
    made = matching.unmerge(matching.merge(x))
    for row, expected in zip(made, x):
        assert torch.allclose(row, by_definition(expected, 0.5, parted(height, width, 7, CPU)), atol=1e-6)


def test_a_map_is_matched_alone() -> None:
    x = tokens(8, 8, rows=3)
    merging = TokenMerging(0.5, 8, 8, 3)
    together, alone = merging.match(x), merging.match(x[1:2])
    assert torch.equal(together.merged[1:2], alone.merged)
    assert torch.equal(together.nearest[1:2], alone.nearest)


@needs_bfloat16_sums
def test_half_precision_averages_many_tokens_without_overflow() -> None:
    x = torch.full((1, 32 * 32, 4), 60.0, dtype=torch.bfloat16)  # whose sum over a map is beyond float16
    matching = TokenMerging(0.75, 32, 32, 0).match(x)
    merged = matching.merge(x)
    assert merged.dtype is torch.bfloat16
    assert torch.allclose(matching.unmerge(merged).float(), x.float(), rtol=2**-7)  # 8 bits of a number


def test_small_maps_and_those_of_lower_levels_are_left_alone() -> None:
    assert TokenMerging(0.5, 32, 32, 0).suits(32, 32)
    assert not TokenMerging(0.5, 32, 32, 0).suits(16, 16)
    assert not TokenMerging(0.5, 31, 32, 0).suits(31, 32)


def test_a_transformer_merges_what_suits_it_and_nothing_else() -> None:
    torch.manual_seed(0)
    layer = SpatialTransformer(32, 2, 16, context_dim=8)
    torch.nn.init.normal_(layer.proj_out.weight, std=0.1)
    x, context = torch.randn(1, 32, 32, 34), torch.randn(1, 3, 8)
    plain = layer(x, context)
    assert torch.equal(layer(x, context, merging(0.5, 64, 64)), plain)
    merged = layer(x, context, merging(0.5, 32, 34))
    assert not torch.equal(merged, plain)
    assert (merged - plain).norm() < 0.5 * (plain - x).norm()


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 35)])
def test_the_network_merges_at_its_top_level(height: int, width: int) -> None:
    built = unet(attention_resolutions=[1, 2])
    x, context = torch.randn(1, 4, height, width), torch.randn(1, 7, 16)
    t = torch.tensor([500])
    plain = built(x, t, context)
    merged = built(x, t, context, merging(0.5, height, width))
    assert merged.shape == plain.shape
    assert not torch.equal(merged, plain)
    # With nothing merged, the tokens attend to the same ones in another order, and so sum in another.
    assert torch.allclose(built(x, t, context, merging(0.0, height, width)), plain, atol=1e-4)


@pytest.mark.parametrize(("resolutions", "expected"), [([1, 2], True), ([2], False)])
def test_a_network_that_merges_nowhere_says_so(resolutions: List[int], expected: bool) -> None:
    built = unet(attention_resolutions=resolutions)
    x, context, t = torch.randn(1, 4, 32, 32), torch.randn(1, 7, 16), torch.tensor([500])
    assert built.attends_to_largest is expected
    assert torch.equal(built(x, t, context, merging(0.5, 32, 32)), built(x, t, context)) is not expected
