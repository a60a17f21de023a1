"""The loss of the first stage: what it punishes, and when the discriminator takes part."""

from __future__ import annotations

from typing import Any, Dict

import pytest
import torch

from ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from ldm.modules.losses.reconstruction import ReconstructionLoss

pytest.importorskip("pytorch_lightning", reason="training is an extra: pip install -e .[train]")


def unit_posterior() -> DiagonalGaussianDistribution:
    return DiagonalGaussianDistribution(torch.zeros(2, 8, 4, 4))


def test_a_perfect_reconstruction_costs_nothing() -> None:
    image = torch.rand(2, 3, 32, 32)
    loss, parts = ReconstructionLoss()(image, image, unit_posterior(), step=0)
    assert (float(loss), float(parts["l1"])) == (0.0, 0.0)


def test_an_even_shift_costs_its_size_and_no_edges() -> None:
    image = torch.zeros(2, 3, 32, 32)
    loss, _ = ReconstructionLoss(edge_weight=100.0)(image, image + 0.25, unit_posterior(), step=0)
    assert float(loss) == pytest.approx(0.25)


def test_a_blurred_edge_costs_more_than_its_pixels() -> None:
    image = torch.zeros(1, 3, 8, 8)
    image[..., 4:] = 1.0
    blurred = torch.nn.functional.avg_pool2d(image, 3, stride=1, padding=1, count_include_pad=False)
    posterior = unit_posterior()
    with_edges, parts = ReconstructionLoss(edge_weight=1.0)(image, blurred, posterior, step=0)
    assert float(with_edges) > 1.5 * float(parts["l1"])


def test_the_discriminator_joins_at_its_step_and_tells_pictures_apart() -> None:
    taming: Any = pytest.importorskip("taming", reason="training is an extra: pip install -e .[train]")
    assert taming is not None
    torch.manual_seed(0)
    loss = ReconstructionLoss(disc_weight=0.1, disc_start=10)
    real, fake = torch.ones(4, 3, 32, 32), -torch.ones(4, 3, 32, 32)
    alone: Dict[str, Any] = loss(real, fake, unit_posterior(), step=9)[1]
    joined: Dict[str, Any] = loss(real, fake, unit_posterior(), step=10)[1]
    assert "fooled" not in alone
    assert "fooled" in joined
    optimizer = torch.optim.Adam(loss.discriminator.parameters(), 1e-3)
    before = float(loss.judge(real, fake).detach())
    for _ in range(5):
        optimizer.zero_grad()
        loss.judge(real, fake).backward()
        optimizer.step()
    assert float(loss.judge(real, fake).detach()) < before
