"""What is said of this machine is what a pipeline does on it."""

from __future__ import annotations

import torch

from ldm.inference import kernels
from ldm.inference.kernels import describe_kernels
from ldm.inference.packing import unpack
from ldm.inference.pipeline import Pipeline
from ldm.inference.runtime import Precision, compute_dtype


def test_a_line_each_for_what_the_probes_chose():
    lines = describe_kernels("cpu", Precision.AUTOCAST)
    assert lines[0].startswith(f"torch {torch.__version__}, a")
    assert [line.partition(":")[0] for line in lines[1:]] == [
        "device", "arithmetic", "attention", "weights", "freed memory"
    ]  # fmt: skip
    dtype = compute_dtype(torch.device("cpu"), Precision.AUTOCAST)
    assert lines[2].startswith(f"arithmetic: {str(dtype).replace('torch.', '')} (")


def test_packing_is_reported_as_it_is_done(tiny_model):
    pipeline = Pipeline.load(tiny_model.config, tiny_model.checkpoint, device="cpu")
    assert ("weights: packed once" in describe_kernels("cpu", Precision.AUTOCAST)) == (unpack(pipeline.model) > 0)


def test_what_is_done_without_is_said(monkeypatch):
    monkeypatch.setattr(kernels, "can_pack", lambda dtype: False)
    monkeypatch.setattr(kernels, "can_keep_freed_memory", lambda: False)
    assert describe_kernels("cpu", Precision.FULL)[-2:] == [
        "weights: as they are: this torch takes no packed ones",
        "freed memory: given back to the kernel",
    ]
