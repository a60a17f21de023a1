"""Averaged weights follow the trained ones and can stand in for them."""

from __future__ import annotations

import torch
from torch import nn

from ldm.modules.ema import LitEma


def test_shadows_carry_the_names_of_a_full_checkpoint() -> None:
    network = nn.Module()
    network.diffusion_model = nn.Sequential(nn.Linear(2, 2))
    names = set(LitEma(network).state_dict())
    assert names == {"decay", "num_updates", "diffusion_model0weight", "diffusion_model0bias"}


def test_a_constant_weight_is_its_own_average() -> None:
    network = nn.Linear(3, 3)
    average = LitEma(network, decay=0.9)
    for _ in range(20):
        average(network)
    assert torch.allclose(average.state_dict()["weight"], network.weight)


def test_the_average_follows_the_weight_and_lags_behind_it() -> None:
    network = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(network.weight)
    average = LitEma(network, decay=0.9)
    nn.init.ones_(network.weight)
    seen = []
    for _ in range(60):
        average(network)
        seen.append(float(average.state_dict()["weight"]))
    assert seen == sorted(seen)
    assert 0.5 < seen[0] < 1.0
    assert seen[-1] > 0.99


def test_swapping_in_leaves_no_trace() -> None:
    network = nn.Linear(2, 2)
    average = LitEma(network)
    before = network.weight.detach().clone()
    with torch.no_grad():
        network.weight.add_(1.0)
    with average.swapped_into(network):
        assert torch.equal(network.weight, before)
    assert torch.equal(network.weight, before + 1.0)
