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
from ldm.inference.room import Rooms
from ldm.inference.spec import GenerationRequest, SamplerConfig
from ldm.modules.recall import Recall
from tests.cards import FakeGraphs, FakeMemory
from tests.tiny import random_model


class Counted(nn.Module):
    """x (B,4) and t (B,) to (B,4), counting its calls; what saves work saves none here."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 4).requires_grad_(False)
        self.calls = 0

    def forward(self, x, t, context=None):
        self.calls += 1
        out = self.layer(x) + t[:, None]
        return out * context if isinstance(context, torch.Tensor) else out


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
    for batch in (2, 3):
        for seed in range(3 * CALLS_BEFORE):
            assert torch.equal(forward(*inputs(batch, seed)), network(*inputs(batch, seed)))
    assert len(asked) == 1, "nor for another shape"
    assert "no recording of the network for (2, 4): CUDA graphs may only be used in Pytorch built" in caplog.text


def test_a_failure_that_leaves_memory_in_reserve_for_ever_ends_no_process(monkeypatch, caplog):
    """As many versions of torch do: they take a recording that failed to be under way still."""
    network, graphs, forward = replayed()

    def fails(work):
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    def asserts():
        raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED\nmore words")

    graphs.record = fails
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", asserts)
    caplog.set_level(logging.INFO)
    for seed in range(2 * CALLS_BEFORE):
        assert torch.equal(forward(*inputs(seed=seed)), network(*inputs(seed=seed)))
    assert "the card's memory stays in reserve: captures_underway.empty() INTERNAL ASSERT FAILED" in caplog.text


@pytest.mark.parametrize("is_busy", [True, False])
def test_what_saves_work_is_left_out_of_the_call_that_is_timed_alone_where_nothing_is_recorded(is_busy):
    given = []

    def network(x, t, recall=None):
        given.append(recall)
        return x + t[:, None]

    def fails(work):
        raise RuntimeError("this card records nothing")

    graphs, recall = FakeGraphs(launching=0.3 if is_busy else 1.0), Recall()
    graphs.record = fails
    forward = Replayed(network, graphs, graphs.clock)
    for _ in range(3 * CALLS_BEFORE):
        forward(*inputs(), recall)
    timed = CALLS_BEFORE - 1
    assert given == [*timed * [recall], None, *2 * CALLS_BEFORE * [recall]]


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
    fields = {"sampler": SamplerConfig(steps=2 * CALLS_BEFORE), **fields}
    return GenerationRequest(prompt="a cat", seed=seed, height=64, width=64, **fields)


def out_of_memory(*_):
    raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")


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


def test_weights_that_moved_on_the_way_to_float32_and_back_leave_no_recording_behind(recorded, monkeypatch):
    """The memory ends half-way: what was converted until then comes back to another place."""
    pipeline, _ = recorded
    before = pipeline.generate([request()])[0].pixels
    assert recordings_of(pipeline.model).hold_memory
    converted, to_float = [], torch.Tensor.float

    def full(tensor):
        converted.append(tensor)
        return to_float(tensor).clone() if len(converted) < 5 else out_of_memory()

    with monkeypatch.context() as patched:
        patched.setattr(torch.Tensor, "float", full)
        with pytest.raises(RuntimeError, match="out of memory"), pipeline.in_float32():
            raise AssertionError("it went on")
    assert len(converted) == 5
    assert not recordings_of(pipeline.model).hold_memory
    assert (pipeline.generate([request()])[0].pixels == before).all()


def test_a_lack_of_memory_that_no_recording_is_to_blame_for_leaves_them_on(recorded, monkeypatch):
    pipeline, graphs = recorded
    decode = pipeline.model.decode_first_stage
    monkeypatch.setattr(
        pipeline.model,
        "decode_first_stage",
        lambda latent, in_strips=False: decode(latent, in_strips=True) if in_strips else out_of_memory(),
    )
    few = request(sampler=SamplerConfig(steps=2))
    assert pipeline.generate([few])[0].pixels is not None
    pipeline.generate([request()])
    assert graphs.recorded == 1


def test_kinds_of_pictures_that_take_the_same_memory_are_measured_once(recorded):
    """And share their recordings: steps, seed and the strength of guidance change no shape."""
    pipeline, graphs = recorded
    made_room = []
    pipeline.rooms = Rooms(FakeMemory(100), lambda: made_room.append(True))
    pipeline._try_network = lambda *_: None
    pipeline.rooms._memory.peak = lambda work: 1
    for scale, steps in ((7.5, 8), (5.0, 8), (9.0, 9), (5.0, 10)):
        sampler = SamplerConfig(steps=steps, guidance_scale=scale)
        pipeline.generate([request(1, sampler=sampler), request(2, sampler=sampler)])
    assert made_room == [True]
    assert graphs.recorded == 1
    sampler = SamplerConfig(steps=8, guidance_scale=1.0)
    pipeline.generate([request(1, sampler=sampler), request(2, sampler=sampler)])
    assert made_room == [True, True], "one text instead of two"


def test_where_memory_is_short_nothing_is_kept_nor_recorded_again(recorded):
    pipeline, graphs = recorded
    before = pipeline.generate([request()])[0].pixels
    pipeline.spare_memory()
    assert not recordings_of(pipeline.model)._recordings
    assert (pipeline.generate([request()])[0].pixels == before).all()
    assert graphs.recorded == 1
    Pipeline(random_model()).spare_memory()  # a CPU has nothing to spare


def test_a_kind_of_picture_is_measured_without_recordings(recorded):
    """They hold memory that nothing else can have, and what is replayed takes none that could be seen."""
    pipeline, graphs = recorded
    pipeline.generate([request()])
    recordings, seen = recordings_of(pipeline.model), []

    class Memory:
        def free(self):
            return 100

        def peak(self, work):
            seen.append((dict(recordings._recordings), graphs.replayed))
            work()
            assert graphs.replayed == seen[-1][1]
            return 1

    pipeline.rooms = Rooms(Memory(), pipeline.drop_recordings)
    pipeline.generate([request(1), request(2)])
    assert [kept for kept, _ in seen] == [{}]
    assert graphs.recorded == 2


def test_what_fits_beside_no_recording_is_made_without_one(recorded, monkeypatch, caplog):
    """Neither in strips nor in smaller batches, which would have other last bits."""
    pipeline, graphs = recorded
    before = pipeline.generate([request()])[0].pixels
    recordings, decode = recordings_of(pipeline.model), pipeline.model.decode_first_stage
    ways = []

    def decode_with_little_memory(latent, **words):
        ways.append(words)
        return out_of_memory() if recordings._recordings else decode(latent, **words)

    monkeypatch.setattr(pipeline.model, "decode_first_stage", decode_with_little_memory)
    caplog.set_level(logging.INFO)
    assert (pipeline.generate([request()])[0].pixels == before).all()
    assert ways == [{}, {}]
    assert "not enough memory beside recordings: without them" in caplog.text
    assert not recordings._recordings
    assert (pipeline.generate([request()])[0].pixels == before).all()
    assert graphs.recorded == 1, "none again"


def test_a_batch_that_fits_beside_no_recording_is_sampled_without_one(recorded, monkeypatch):
    pipeline, _ = recorded
    before = [image.pixels for image in pipeline.generate([request(1), request(2)])]
    recordings, sample = recordings_of(pipeline.model), pipeline._sample
    monkeypatch.setattr(
        pipeline, "_sample", lambda *words: out_of_memory() if recordings._recordings else sample(*words)
    )
    again = [image.pixels for image in pipeline.generate([request(1), request(2)])]
    assert all((one == other).all() for one, other in zip(again, before))
    monkeypatch.setattr(pipeline, "_sample", out_of_memory)
    with pytest.raises(RuntimeError, match="out of memory"):
        pipeline.generate([request(1), request(2)])


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
