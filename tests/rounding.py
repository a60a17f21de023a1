"""What the torch at hand does with numbers of few bits."""

from __future__ import annotations

import pytest
import torch

ONES = torch.ones(1, 4096, dtype=torch.bfloat16)

# torch 1.10 sums such products in bfloat16 on a processor without instructions for it, where nothing computes in it.
needs_bfloat16_sums = pytest.mark.skipif(
    bool((ONES @ ONES.t()).item() != ONES.shape[1]), reason="this torch sums bfloat16 in bfloat16 here: 256 + 1 is 256"
)
