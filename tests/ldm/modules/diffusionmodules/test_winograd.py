"""Minimal filtering is the convolution, of any size, with little more rounding."""

from __future__ import annotations

from typing import Optional

import pytest
import torch
from torch.nn import functional

from ldm.modules.diffusionmodules import winograd
from ldm.modules.diffusionmodules.winograd import POINTS, convolve, transformed

SIZES = [(1, 1), (4, 4), (8, 12), (5, 7), (13, 2)]


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def filtered(x: torch.Tensor, weight: torch.Tensor, bias: Optional[torch.Tensor], m: int) -> torch.Tensor:
    of_places = [each.clone() for each in transformed(weight.permute(2, 3, 0, 1), m)]
    products = [lambda tiles, each=each: tiles @ each.t() for each in of_places]
    return convolve(x, products, weight.shape[0], bias)


@pytest.mark.parametrize("m", POINTS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_it_is_the_convolution(m, size, batch, order):
    x, weight, bias = numbers(batch, 5, *size).contiguous(memory_format=order), numbers(6, 5, 3, 3), numbers(6)
    got = filtered(x, weight, bias, m)
    # 45 products near 1 and matrices whose entries cancel: 1e-16 each.
    assert torch.allclose(got, functional.conv2d(x, weight, bias, padding=1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("m", POINTS)
def test_weights_are_transformed_in_one_piece_of_memory(m):
    assert len({each.data_ptr() for each in transformed(numbers(3, 3, 6, 5), m)}) == 1


@pytest.mark.parametrize("m", POINTS)
def test_it_goes_without_a_bias(m):
    x, weight = numbers(1, 5, 8, 8), numbers(6, 5, 3, 3)
    got = filtered(x, weight, None, m)
    assert torch.allclose(got, functional.conv2d(x, weight, padding=1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("m", POINTS)
@pytest.mark.parametrize("at_once", [1, 2 * 16 * 3 * 6, 10**9])
def test_a_map_taken_in_strips_gives_the_same(m, at_once, monkeypatch):
    x, weight, bias = numbers(2, 5, 22, 12), numbers(6, 5, 3, 3), numbers(6)
    monkeypatch.setattr(winograd, "AT_ONCE", at_once)
    got = filtered(x, weight, bias, m)
    assert torch.allclose(got, functional.conv2d(x, weight, bias, padding=1), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("m", "error"), [(2, 6e-7), (4, 2e-6)])
def test_it_rounds_little_in_float32(m, error):
    """The plain sum of 2,700 products is off by 2e-7 of the result's length, bfloat16 by 2e-3."""
    x, weight, bias = numbers(2, 300, 16, 16), numbers(32, 300, 3, 3) / 50, numbers(32)
    exact = functional.conv2d(x.float().double(), weight.float().double(), bias.float().double(), padding=1)
    got = filtered(x.float(), weight.float(), bias.float(), m)
    assert float((got - exact).norm() / exact.norm()) <= error
