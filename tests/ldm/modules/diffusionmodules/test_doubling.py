"""Doubling and convolving as one step is the two steps after each other."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from ldm.modules.diffusionmodules.doubling import DoublingConv2d, interleaved, phase_weights, repeated


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (5, 3), (8, 8)])
def test_four_small_convolutions_are_the_doubled_one(size):
    torch.manual_seed(0)
    layer = DoublingConv2d(3, 5, 3, padding=1, bias=False).double()
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    phases = functional.conv2d(x, phase_weights(layer.weight).double(), padding=1)
    # Weights are added up in float32.
    assert torch.allclose(interleaved(phases), layer(x), atol=1e-5)


def test_weights_in_half_precision_are_rounded_once():
    weight = torch.randn(4, 4, 3, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(phase_weights(weight), phase_weights(weight.float()).bfloat16())


def test_pixels_are_repeated_to_the_size_asked_for():
    x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    assert repeated(x).tolist() == [[[[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]]]
    assert repeated(x, (3, 2)).tolist() == [[[[1, 2], [1, 2], [3, 4]]]]
