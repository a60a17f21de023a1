"""A step that reuses the deep map runs no deep block, and gives what a whole step would where nothing has changed."""

from __future__ import annotations

from typing import Any, List

import pytest
import torch
from torch import Tensor, nn

from ldm.modules.deep_cache import DeepCache
from ldm.modules.recall import Recall
from tests.ldm.modules.diffusionmodules.test_openaimodel import unet


def call(built: nn.Module, cache: Any, *, seed: int = 1, rows: int = 2, size: Any = (8, 8)) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((rows, 4, *size), generator=generator)
    return built(x, torch.full((rows,), 500), torch.randn((rows, 7, 16), generator=generator), recalling(cache))


def recalling(cache: Any) -> Recall:
    recall = Recall()
    recall.cache = cache
    return recall


def prepared(cache: DeepCache, t: float, rows: int = 2) -> DeepCache:
    cache.prepare(t, rows)
    return cache


def are_whole(cache: DeepCache, calls: List[float], rows: int = 2) -> List[bool]:
    """Which of the calls, given by their timesteps, run the whole network."""
    found = []
    for t in calls:
        cache.prepare(t, rows)
        found.append(cache.map is None)
        cache.map = torch.zeros(rows, 1)
    return found


@pytest.mark.parametrize("interval", [2, 3, 5])
def test_one_step_in_so_many_is_whole(interval: int) -> None:
    steps = [float(t) for t in range(900, 0, -50)]
    assert are_whole(DeepCache(interval), steps) == [i % interval == 0 for i in range(len(steps))]


def test_calls_at_one_timestep_are_one_step() -> None:
    """PLMS asks for its second step twice: ahead of it, and when it is there."""
    assert are_whole(DeepCache(2), [9.0, 7.0, 7.0, 5.0, 3.0]) == [True, False, False, True, False]


def test_a_map_of_another_batch_is_not_reused() -> None:
    cache = DeepCache(5)
    assert are_whole(cache, [9.0, 8.0], rows=4) == [True, False]
    assert are_whole(cache, [7.0, 6.0, 5.0, 4.0, 3.0, 2.0], rows=2) == [True, False, False, False, False, True]


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("size", [(8, 8), (9, 7), (1, 1)])
def test_where_nothing_has_changed_the_noise_is_the_same_bit_for_bit(depth: int, size: Any) -> None:
    built = unet(channel_mult=[1, 1, 2], attention_resolutions=[1, 2])
    plain = call(built, None, size=size)
    cache = prepared(DeepCache(3, depth), 9.0)
    assert torch.equal(call(built, cache, size=size), plain)
    # Twice: the map must not be worked on in place.
    for t in (8.0, 7.0):
        assert torch.equal(call(built, prepared(cache, t), size=size), plain)


def test_a_reusing_step_runs_the_outermost_blocks_alone() -> None:
    built = unet()
    ran: List[nn.Module] = []
    for block in (*built.input_blocks, built.middle_block, *built.output_blocks):
        block.register_forward_hook(lambda module, *_: ran.append(module))
    cache = prepared(DeepCache(2), 9.0)
    call(built, cache)
    assert len(ran) == len(built.input_blocks) + 1 + len(built.output_blocks)
    ran.clear()
    call(built, prepared(cache, 8.0))
    assert ran == [built.input_blocks[0], built.output_blocks[-1]]


def test_a_reusing_step_heeds_its_own_latent() -> None:
    built = unet()
    cache = prepared(DeepCache(2), 9.0)
    first = call(built, cache)
    second = call(built, prepared(cache, 8.0), seed=2)
    assert not torch.allclose(first, second)
    # It is not what the whole network would have said, but nearer to that than the step before is.
    whole = call(built, None, seed=2)
    assert 0 < (second - whole).norm() < (first - whole).norm()


def test_a_row_does_not_depend_on_its_batch() -> None:
    built = unet()
    both, alone = prepared(DeepCache(2), 9.0), prepared(DeepCache(2), 9.0, rows=1)
    generator = torch.Generator().manual_seed(3)
    x, context = torch.randn((2, 4, 8, 8), generator=generator), torch.randn((2, 7, 16), generator=generator)
    for t in (9.0, 8.0):
        both.prepare(t, 2)
        alone.prepare(t, 1)
        times = torch.full((2,), int(t))
        together = built(x * t, times, context, recalling(both))
        # The same sums; a kernel may order them otherwise for one row.
        assert torch.allclose(together[1:], built(x[1:] * t, times[1:], context[1:], recalling(alone)), atol=1e-5)
