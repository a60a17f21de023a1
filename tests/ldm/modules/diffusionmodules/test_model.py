"""The first stage's attention: the formula in any order of memory, and no scores of all places in memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ldm.modules.diffusionmodules.model import AttnBlock

ROOT = Path(__file__).resolve().parents[4]
ORDERS = [torch.contiguous_format, torch.channels_last]


def expected(block: AttnBlock, x: Tensor) -> Tensor:
    h = block.norm(x)
    q, k, v = (conv(h).flatten(2) for conv in (block.q, block.k, block.v))
    weights = (q.transpose(1, 2) @ k / x.shape[1] ** 0.5).softmax(dim=-1)
    return x + block.proj_out((v @ weights.transpose(1, 2)).view(x.shape))


@pytest.mark.parametrize("order", ORDERS)
def test_every_place_looks_at_all_places(order):
    torch.manual_seed(0)
    block = AttnBlock(32, 8).double()
    x = torch.randn(2, 32, 6, 4, dtype=torch.float64).contiguous(memory_format=order).requires_grad_(True)
    found, formula = block(x), expected(block, x)
    assert torch.allclose(found, formula, rtol=0, atol=1e-12)
    (slope,), (formula_slope,) = (torch.autograd.grad(each.square().sum(), x) for each in (found, formula))
    assert torch.allclose(slope, formula_slope, rtol=0, atol=1e-10)  # of sums of 768 squares


PEAK = """
import sys, torch
from pathlib import Path
from ldm.modules.diffusionmodules.model import AttnBlock

def memory(what):
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith(what))) / 1024

torch.set_num_threads(1)
block = AttnBlock(32, 8).requires_grad_(False)
with torch.no_grad():
    block(torch.zeros(1, 32, 8, 8))
    before = memory("VmRSS")
    block(torch.zeros(1, 32, 64, 64).contiguous(memory_format=getattr(torch, sys.argv[1])))
print(memory("VmHWM") - before)
"""


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.skipif(not hasattr(functional, "scaled_dot_product_attention"), reason="torch has no fused kernel")
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
def test_the_scores_of_all_places_are_never_in_memory(order):
    """Those of 64 x 64 places are 64 MiB; all that is as large as the map, 0.5 MiB each."""
    command = [sys.executable, "-c", PEAK, str(order).split(".")[1]]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    assert float(done.stdout) < 32
