"""What is said of this machine is what a pipeline does on it."""

from __future__ import annotations

import pytest
import torch

from ldm.inference import kernels, trial
from ldm.inference.kernels import describe_kernels
from ldm.inference.packing import unpack
from ldm.inference.pipeline import Pipeline
from ldm.inference.runtime import Precision, compute_dtype
from ldm.modules import attention
from tests.cards import FakeGraphs, FakeMemory


def test_a_line_each_for_what_the_probes_chose():
    lines = describe_kernels("cpu", Precision.AUTOCAST)
    assert lines[0].startswith(f"torch {torch.__version__}, a")
    assert [line.partition(":")[0] for line in lines[1:]] == [
        "device", "arithmetic", "attention", "weights"
    ]  # fmt: skip
    dtype = compute_dtype(torch.device("cpu"), Precision.AUTOCAST)
    assert lines[2].startswith(f"arithmetic: {str(dtype).replace('torch.', '')} (")


def test_packing_is_reported_as_it_is_done(tiny_model):
    pipeline = Pipeline.load(tiny_model.config, tiny_model.checkpoint, device="cpu")
    assert ("weights: packed once" in describe_kernels("cpu", Precision.AUTOCAST)) == (unpack(pipeline.model) > 0)


def test_what_is_done_without_is_said(monkeypatch):
    monkeypatch.setattr(kernels, "can_pack", lambda dtype: False)
    assert describe_kernels("cpu", Precision.FULL)[-1] == ("weights: as they are: this torch takes no packed ones")


@pytest.fixture
def card(monkeypatch):
    """What is asked of a card is asked of the CPU, with a memory and a recorder that are made up."""
    graphs = FakeGraphs()
    monkeypatch.setattr(attention, "UNSLICED", set())
    monkeypatch.setattr(kernels, "memory_of", lambda device: FakeMemory(3 * 2**30))
    monkeypatch.setattr(kernels, "graphs_of", lambda device: graphs)
    monkeypatch.setattr(trial, "writes_all_scores", lambda device, dtype, peak: False)
    return graphs


def test_of_a_card_its_free_memory_and_its_recordings_are_said(card):
    assert describe_kernels("cpu", Precision.FULL)[4:] == [
        "memory: 3.0 GiB free",
        "launches: recorded, for shapes that come often and keep the card waiting",
    ]


def test_a_card_that_records_nothing_says_why(card, monkeypatch):
    def fails(work):
        raise RuntimeError("CUDA graphs may only be used in builds with CUDA >= 11.0\nmore words")

    monkeypatch.setattr(card, "record", fails)
    assert describe_kernels("cpu", Precision.FULL)[-1] == (
        "launches: one by one (CUDA graphs may only be used in builds with CUDA >= 11.0)"
    )
    monkeypatch.setattr(card, "record", lambda work: (lambda: None, work()))
    assert describe_kernels("cpu", Precision.FULL)[-1] == "launches: one by one (it gives other numbers)"


def test_attention_is_told_as_it_will_be_computed(card, monkeypatch):
    monkeypatch.setattr(trial, "writes_all_scores", lambda device, dtype, peak: True)
    assert describe_kernels("cpu", Precision.FULL)[3] == "attention: plain operators in slices of the query places"


@pytest.mark.gpu
def test_a_real_card_is_described():
    lines = describe_kernels("gpu", Precision.AUTOCAST)
    assert [line.partition(":")[0] for line in lines[1:]] == [
        "device", "arithmetic", "attention", "memory", "launches"
    ]  # fmt: skip
