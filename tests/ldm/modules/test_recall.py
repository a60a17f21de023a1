"""Words are looked at once a run; what is recalled is what would be computed."""

from __future__ import annotations

from typing import Any, List

import pytest
import torch
from torch import Tensor

from ldm.modules.attention import CrossAttention
from ldm.modules.recall import Recall
from ldm.modules.token_merging import TokenMerging
from tests.ldm.modules.diffusionmodules.test_openaimodel import unet


def words_seen(built: Any) -> List[Tensor]:
    """What each layer that makes keys of words is given, from now on."""
    seen: List[Tensor] = []
    for name, module in built.named_modules():
        if name.endswith("attn2.to_k"):
            module.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    return seen


def test_the_words_of_a_run_are_looked_at_once_and_give_the_same_noise() -> None:
    built, recall = unet(attention_resolutions=[1, 2]), Recall()
    layers = sum(name.endswith("attn2") for name, _ in built.named_modules())
    context = torch.randn(2, 7, 16)
    expected, seen = [], words_seen(built)
    for t in (900, 500, 100):
        x, times = torch.randn(2, 4, 8, 8), torch.full((2,), t)
        expected.append(built(x, times, context))
        seen.clear() if t == 900 else None
        assert torch.equal(built(x, times, context, recall), expected[-1])
    assert len(seen) == layers + 2 * layers, "once with recall, and each of two times without"


def test_other_words_are_looked_at_again() -> None:
    """Where guidance ends, the text alone goes in."""
    attention, recall = CrossAttention(32, context_dim=16, heads=2, dim_head=16), Recall()
    x, words = torch.randn(2, 9, 32), [torch.randn(2, 7, 16) for _ in range(2)]
    for context in (words[0], words[1], words[0], words[0].clone()):
        assert torch.equal(attention(x, context, recall), attention(x, context))


def test_each_layer_has_keys_of_its_own() -> None:
    one, other = (CrossAttention(32, context_dim=16, heads=2, dim_head=16) for _ in range(2))
    x, context, recall = torch.randn(1, 9, 32), torch.randn(1, 7, 16), Recall()
    for layer in (one, other, one):
        assert torch.equal(layer(x, context, recall), layer(x, context))


def test_attention_of_a_map_to_itself_recalls_nothing() -> None:
    attention, recall = CrossAttention(32, heads=2, dim_head=16), Recall()
    for _ in range(2):
        x = torch.randn(1, 9, 32)
        assert torch.equal(attention(x, recall=recall), attention(x))


@pytest.mark.parametrize("interval", [1, 3])
def test_deep_maps_are_kept_where_asked_for(interval: int) -> None:
    recall = Recall(cache_interval=interval)
    assert (recall.cache is None) is (interval == 1)
    assert recall.is_exact is (interval == 1)
    assert recall.merging is None


def test_tokens_are_merged_by_the_size_and_time_of_the_call() -> None:
    recall = Recall(merge_tokens=0.25)
    assert not recall.is_exact
    for height, t in ((8, 981.0), (16, 5.0)):
        recall.prepare(torch.zeros(1, 4, height, 8), t, rows=2)
        assert recall.merging == TokenMerging(0.25, height, 8, int(t))
