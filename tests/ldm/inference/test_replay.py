"""A network that is replayed gives what it gives when it is called, for all numbers, and only where it pays."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from ldm.inference import replay
from ldm.inference.pipeline import Pipeline
from ldm.inference.placing import recordings_of
from ldm.inference.replay import CALLS_BEFORE, KEPT, Replayed
from ldm.inference.spec import GenerationRequest, SamplerConfig
from ldm.modules.recall import Recall
from tests.cards import FakeGraphs
from tests.tiny import random_model


class Counted(nn.Module):
    """x (B,4) and t (B,) to (B,4), counting its calls."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 4).requires_grad_(False)
        self.calls = 0

    def forward(self, x, t, context=None):
        self.calls += 1
        out = self.layer(x) + t[:, None]
        return out if context is None else out * context


def inputs(batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 4, generator=generator), torch.arange(batch) + seed


def replayed(launching=1.0):
    network, graphs = Counted(), FakeGraphs(launching)
    return network, graphs, Replayed(network.forward, graphs, graphs.clock)


def test_every_call_gives_what_the_network_gives_before_and_after_it_is_recorded():
    network, graphs, forward = replayed()
    for seed in range(3 * CALLS_BEFORE):
        assert torch.equal(forward(*inputs(seed=seed)), network(*inputs(seed=seed)))
    assert graphs.recorded == 1
    assert graphs.replayed == 1 + 2 * CALLS_BEFORE, "the first to compare, then every call"


def test_an_outcome_is_not_written_over_by_the_next_call():
    _, _, forward = replayed()
    outcomes = [forward(*inputs(seed=seed)) for seed in range(3 * CALLS_BEFORE)]
    network = Counted()
    assert all(torch.equal(outcome, network(*inputs(seed=seed))) for seed, outcome in enumerate(outcomes))


def test_a_shape_that_is_rare_is_not_recorded():
    _, graphs, forward = replayed()
    for batch in range(1, 20):
        for _ in range(CALLS_BEFORE - 1):
            forward(*inputs(batch))
    assert graphs.recorded == 0


def test_a_network_that_keeps_the_card_busy_is_not_recorded_nor_timed_again():
    _, graphs, forward = replayed(launching=0.3)
    for _ in range(5 * CALLS_BEFORE):
        forward(*inputs())
    assert graphs.recorded == 0
    assert graphs._asked == 3


def test_shapes_dtypes_and_orders_are_recorded_apart_and_only_the_latest_are_kept():
    network, graphs, forward = replayed()
    kinds = [inputs(2), inputs(3), (inputs(2)[0], inputs(2)[1].float()), (inputs(4)[0].t(), inputs(4)[1])]
    for kind in kinds:
        for _ in range(2 * CALLS_BEFORE):
            assert torch.equal(forward(*kind), network(*kind))
    assert graphs.recorded == len(kinds)
    assert len(forward._recordings) == KEPT
    for _ in range(2 * CALLS_BEFORE):  # one that was dropped comes back
        assert torch.equal(forward(*kinds[0]), network(*kinds[0]))
    assert graphs.recorded == len(kinds) + 1


def test_what_is_no_tensor_goes_straight_to_the_network():
    network, graphs, forward = replayed()
    for _ in range(2 * CALLS_BEFORE):
        forward(*inputs(), None)
        forward(*inputs(), context=torch.ones(2, 4))
    assert network.calls == 4 * CALLS_BEFORE
    assert graphs.recorded == 0


def test_what_only_saves_work_does_not_keep_a_call_from_being_recorded():
    network, graphs, forward = replayed()
    for seed in range(2 * CALLS_BEFORE):
        expected = network(*inputs(seed=seed))
        assert torch.equal(forward(*inputs(seed=seed), Recall()), expected)
    assert graphs.recorded == 1


def test_a_card_that_cannot_record_goes_on_as_before_and_is_not_asked_again(caplog):
    network, graphs, forward = replayed()
    asked = []

    def fails(work):
        asked.append(work)
        raise RuntimeError("CUDA graphs may only be used in Pytorch built with CUDA >= 11.0\nmore words")

    graphs.record = fails
    caplog.set_level(logging.INFO)
    for seed in range(3 * CALLS_BEFORE):
        assert torch.equal(forward(*inputs(seed=seed)), network(*inputs(seed=seed)))
    assert len(asked) == 1
    assert "no recording of the network for (2, 4): CUDA graphs may only be used in Pytorch built" in caplog.text


def test_a_recording_that_gives_other_numbers_is_not_used(caplog):
    network, graphs, forward = replayed()
    record = graphs.record

    def off(work):
        return record(lambda: work() + 1e-6)

    graphs.record = off
    caplog.set_level(logging.INFO)
    for _ in range(3 * CALLS_BEFORE):
        assert torch.equal(forward(*inputs()), network(*inputs()))
    assert graphs.replayed == 1
    assert "it gives other numbers" in caplog.text


def test_it_works_with_and_without_inference_mode_by_turns():
    network, _, forward = replayed()
    for seed in range(3 * CALLS_BEFORE):
        with torch.inference_mode(seed % 2 == 0), torch.no_grad():
            assert torch.equal(forward(*inputs(seed=seed)) + 1, network(*inputs(seed=seed)) + 1)


def request(seed=1, **fields):
    sampler = SamplerConfig(steps=2 * CALLS_BEFORE)
    return GenerationRequest(prompt="a cat", seed=seed, height=64, width=64, sampler=sampler, **fields)


@pytest.fixture
def recorded():
    """A pipeline whose network is recorded as on a card, and what records it."""
    pipeline, graphs = Pipeline(random_model()), FakeGraphs()
    network = pipeline.model.model
    network.forward = Replayed(network.forward, graphs, graphs.clock)
    return pipeline, graphs


def test_a_picture_made_with_recordings_is_the_picture_made_without(recorded):
    plain = Pipeline(random_model())
    pipeline, graphs = recorded
    requests = [request(1), request(2, negative_prompt="a dog")]
    for made, expected in zip(pipeline.generate(requests), plain.generate(requests)):
        assert (made.pixels == expected.pixels).all()
    assert graphs.recorded == 1
    assert graphs.replayed > CALLS_BEFORE
    assert recordings_of(plain.model) is None


def test_weights_that_move_leave_no_recording_behind(recorded):
    """A graph reads weights by their place: after a second try in float32 it would read what is no weight any more."""
    pipeline, _ = recorded
    before = pipeline.generate([request()])[0].pixels
    recordings = recordings_of(pipeline.model)
    assert recordings._recordings
    with pipeline.in_float32():
        assert not recordings._recordings
        pipeline.generate([request()])
        assert recordings._recordings
    assert not recordings._recordings
    assert (pipeline.generate([request()])[0].pixels == before).all()


def test_where_memory_is_short_nothing_is_kept_nor_recorded_again(recorded):
    pipeline, graphs = recorded
    before = pipeline.generate([request()])[0].pixels
    pipeline.spare_memory()
    assert not recordings_of(pipeline.model)._recordings
    assert (pipeline.generate([request()])[0].pixels == before).all()
    assert graphs.recorded == 1
    Pipeline(random_model()).spare_memory()  # a CPU has nothing to spare


@pytest.mark.gpu
def test_a_real_card_replays_the_numbers_that_it_computes(monkeypatch):
    from ldm.inference.runtime import CardGraphs, pick_device

    device = pick_device("gpu")
    monkeypatch.setattr(replay, "LAUNCHING_SHARE", 0.0)
    network = random_model().to(device).half().model
    eager, network.forward = network.forward, Replayed(network.forward, CardGraphs(device))
    x, t = torch.randn(2, 4, 8, 8, device=device).half(), torch.tensor([5, 5], device=device)
    context = torch.randn(2, 77, 32, device=device).half()
    for step in range(3 * CALLS_BEFORE):
        assert torch.equal(network(x + step, t, context), eager(x + step, t, context))
    assert network.forward._recordings, "this torch or this card records nothing: see the log"
