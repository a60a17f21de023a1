"""Attention is the mean of its definition, however it is computed."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from ldm.modules import attention
from ldm.modules.attention import (
    GEGLU,
    CrossAttention,
    SpatialTransformer,
    attend,
    attend_by_head,
    attend_in_slices,
    attention_kernel,
)
from tests.rounding import needs_bfloat16_sums

FUSED = getattr(functional, "scaled_dot_product_attention", None)
needs_fused = pytest.mark.skipif(FUSED is None, reason="this torch has no fused kernel: the next test is for it")


def qkv(places: int, words: int) -> tuple:  # type: ignore[type-arg]
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn((2, 3, n, 8), generator=generator) for n in (places, words, words))


@pytest.mark.parametrize(("places", "words"), [(1, 1), (16, 16), (64, 7), (33, 77)])
def test_slices_change_nothing(places: int, words: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = attend_in_slices(*qkv(places, words))
    monkeypatch.setattr(attention, "SLICE_ELEMENTS", 100)
    # The products of a slice are the same, but a kernel may sum them in another order.
    assert torch.allclose(attend_in_slices(*qkv(places, words)), whole, atol=1e-6)


@pytest.mark.parametrize(("places", "words"), [(1, 1), (300, 300), (700, 77), (1, 1024), (130, 1024), (1100, 1500)])
def test_one_head_at_a_time_gives_the_same(places: int, words: int) -> None:
    expected = attend_in_slices(*qkv(places, words))
    assert torch.allclose(attend_by_head(*qkv(places, words)), expected, atol=1e-6)


@needs_bfloat16_sums
@pytest.mark.parametrize(("places", "words"), [(1, 1), (300, 300), (700, 77), (1, 1024), (130, 1024), (1100, 1500)])
def test_one_head_at_a_time_gives_the_same_but_for_rounding_in_bfloat16(places: int, words: int) -> None:
    expected = attend_in_slices(*qkv(places, words))
    in_bf16 = attend_by_head(*(x.bfloat16() for x in qkv(places, words)))
    # Scores and weights are rounded to 8 bits, as in every kernel of that dtype.
    assert (in_bf16.float() - expected).abs().max() < 0.05


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_bfloat16_sums)])
@pytest.mark.parametrize("score", [-300.0, -60.0, -20.0, 20.0, 60.0, 300.0])
def test_a_head_whose_scores_are_far_from_zero_is_weighed_as_well_as_its_neighbours(score: float, dtype) -> None:
    """All scores of the second head lie near that number; exp of the outer ones is no float."""
    q, k, v = qkv(600, 1024)
    q[:, 1, :, 0], k[:, 1, :, 0] = 8.0, score * 8**0.5 / 8
    q, k, v = (x.to(dtype) for x in (q, k, v))
    found, expected = attend_by_head(q, k, v).float(), attend_in_slices(q, k, v).float()
    assert torch.allclose(found, expected, atol=1e-4 if dtype is torch.float32 else 0.03)


def test_sums_leave_room_for_values_that_are_large() -> None:
    """Weights of exp(80) and their sum are floats yet, but a thousand times as much is none."""
    q, k, v = qkv(600, 1024)
    q[..., 0], k[..., 0] = 8.0, 80 * 8**0.5 / 8
    expected = attend_in_slices(q, k, 1000 * v)
    assert torch.allclose(attend_by_head(q, k, 1000 * v), expected, atol=0.1)


def test_scores_that_are_no_numbers_give_none_in_their_head_alone() -> None:
    q, k, v = qkv(600, 1024)
    k[0, 1, 5, 0] = float("nan")
    found = attend_by_head(q, k, v)
    assert bool(found[0, 1].isnan().all())
    found[0, 1] = 0
    assert bool(found.isfinite().all())


@needs_fused
@pytest.mark.parametrize(
    ("device", "dtype", "trains", "flags", "kernel"),
    [
        ("cpu", torch.float32, False, "", FUSED),
        ("cpu", torch.float32, True, "", attend_in_slices),
        ("cpu", torch.bfloat16, False, "avx512_bf16", attend_by_head),
        ("cpu", torch.bfloat16, False, "avx2", attend_in_slices),
        ("cpu", torch.bfloat16, False, "avx512_bf16 amx_bf16", FUSED),
        ("cpu", torch.bfloat16, True, "amx_bf16", attend_in_slices),
        ("xpu", torch.bfloat16, False, "", FUSED),
        ("xpu", torch.float16, True, "", FUSED),
    ],
)
def test_the_kernel_follows_from_device_dtype_and_processor_alone(device, dtype, trains, flags, kernel, monkeypatch):
    monkeypatch.setattr(attention, "processor_flags", lambda: frozenset(flags.split()))
    assert attention_kernel(device, dtype, trains=trains) is kernel


def test_a_torch_without_the_fused_kernel_has_plain_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_HAS_FUSED_KERNEL", False)
    assert attention_kernel("xpu", torch.float16, trains=False) is attend_in_slices
    assert attention_kernel("cpu", torch.float32, trains=False) is attend_in_slices


def test_a_fused_kernel_that_needs_the_memory_of_all_scores_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "UNSLICED", {("xpu", torch.float16)})
    assert attention_kernel("xpu", torch.float16, trains=False) is attend_in_slices


@pytest.mark.parametrize(("places", "words"), [(16, 16), (64, 7)])
def test_attention_is_the_weighted_mean_of_its_definition(places: int, words: int) -> None:
    q, k, v = qkv(places, words)
    weights = (torch.einsum("bhnd,bhmd->bhnm", q, k) / 8**0.5).softmax(-1)
    assert torch.allclose(attend(q, k, v), torch.einsum("bhnm,bhmd->bhnd", weights, v), atol=1e-6)


def test_gradients_flow_the_same_way_with_and_without_the_fused_kernel() -> None:
    q, k, v = qkv(16, 16)
    plain = torch.autograd.functional.jacobian(lambda x: attend(x, k, v).sum(), q)
    sliced = torch.autograd.functional.jacobian(lambda x: attend_in_slices(x, k, v).sum(), q)
    assert torch.allclose(plain, sliced, atol=1e-6)


def test_without_context_a_layer_attends_to_itself() -> None:
    torch.manual_seed(0)
    layer = CrossAttention(16, heads=2, dim_head=8)
    x = torch.randn(2, 5, 16)
    assert torch.equal(layer(x), layer(x, x))


def test_a_new_transformer_adds_nothing() -> None:
    x = torch.randn(1, 32, 4, 6)
    assert torch.equal(SpatialTransformer(32, 2, 16, context_dim=8)(x, torch.randn(1, 3, 8)), x)


def test_the_gate_is_the_second_half_of_the_projection() -> None:
    layer = GEGLU(4, 6)
    x = torch.randn(2, 4)
    value, gate = layer.proj(x)[:, :6], layer.proj(x)[:, 6:]
    assert torch.equal(layer(x), value * torch.nn.functional.gelu(gate))
