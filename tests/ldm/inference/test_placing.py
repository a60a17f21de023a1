"""A model is made ready for a card by the same code that a CPU runs here, with a made-up memory and recorder."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from ldm.inference import pipeline as pipelines
from ldm.inference import placing, trial
from ldm.inference.packing import can_pack, unpack
from ldm.inference.pipeline import Pipeline
from ldm.inference.placing import make_ready, make_ready_on_card, recordings_of
from ldm.inference.replay import CALLS_BEFORE
from ldm.inference.room import Rooms
from ldm.inference.runtime import Arithmetic, pick_device
from ldm.inference.spec import GenerationRequest, SamplerConfig, Shortcuts
from ldm.modules import attention
from tests.cards import FakeGraphs, FakeMemory
from tests.tiny import random_model

# Another order of sums moves a number that stands at the edge of a level to the next one.
LEVELS = 1


@pytest.fixture(autouse=True)
def untouched(monkeypatch):
    """What is set for a card would stay for the tests behind this one."""
    settled = []
    monkeypatch.setattr(placing, "settle_card", lambda: settled.append(True))
    monkeypatch.setattr(attention, "UNSLICED", set())
    return settled


def arithmetic(**fields):
    return Arithmetic(torch.float32, "for a test", **fields)


def memory_for_attention(monkeypatch, *, unsliced):
    monkeypatch.setattr(trial, "writes_all_scores", lambda device, dtype, peak: unsliced)
    return FakeMemory(100)


def requests(count=2, steps=2 * CALLS_BEFORE):
    sampler = SamplerConfig(steps=steps)
    words = {"prompt": "a cat", "height": 64, "width": 64, "sampler": sampler}
    return [GenerationRequest(seed=seed, **words) for seed in range(count)]


def pictures(pipeline, **words):
    return np.stack([image.pixels for image in pipeline.generate(requests(**words))]).astype(int)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("unsliced", [False, True])
def test_a_model_made_ready_for_a_card_paints_as_before(monkeypatch, untouched, channels_last, unsliced):
    expected = pictures(Pipeline(random_model()))
    model, graphs = random_model(), FakeGraphs()
    memory = memory_for_attention(monkeypatch, unsliced=unsliced)
    make_ready_on_card(model, arithmetic(channels_last=channels_last), memory, graphs)
    assert untouched == [True]
    assert bool(attention.UNSLICED) is unsliced
    assert np.abs(pictures(Pipeline(model)) - expected).max() <= LEVELS
    assert recordings_of(model) is not None


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_attention_is_tried_in_float32_too_in_which_a_picture_is_made_again(monkeypatch, dtype):
    tried = []
    monkeypatch.setattr(
        trial, "writes_all_scores", lambda device, dtype, peak: tried.append(dtype) or dtype is torch.float32
    )
    placing.settle_attention(torch.device("cpu"), dtype, FakeMemory(100))
    assert tried == list(dict.fromkeys([dtype, torch.float32]))
    assert list(attention.UNSLICED) == [("cpu", torch.float32)]
    kernel = attention.attention_kernel("cpu", torch.float32, trains=False)
    assert kernel is attention.attend_in_slices


def test_channels_last_reaches_every_kernel_and_survives_a_second_try_in_float32(monkeypatch):
    model = random_model()
    memory = memory_for_attention(monkeypatch, unsliced=False)
    make_ready_on_card(model, arithmetic(channels_last=True), memory, FakeGraphs())

    def kernels():
        found = [layer.weight for layer in model.modules() if isinstance(layer, nn.Conv2d)]
        return [weight.is_contiguous(memory_format=torch.channels_last) for weight in found]

    assert len(kernels()) > 50
    assert all(kernels())
    with Pipeline(model).in_float32():
        assert all(kernels())
    assert all(kernels())


def test_a_cpu_gets_its_weights_packed_and_nothing_of_a_card(untouched):
    model = random_model()
    make_ready(model, arithmetic())
    assert untouched == []
    assert recordings_of(model) is None
    assert (unpack(model) > 50) is can_pack(torch.float32)


def test_a_pipeline_on_a_card_measures_its_memory_and_records_its_network(monkeypatch, tiny_model, untouched):
    plain = pictures(Pipeline.load(tiny_model.config, tiny_model.checkpoint, device="cpu"), count=4)
    memory, graphs = memory_for_attention(monkeypatch, unsliced=False), FakeGraphs()
    monkeypatch.setattr(memory, "peak", lambda work: work() or 1)
    for module in (placing, pipelines):
        monkeypatch.setattr(module, "memory_of", lambda device: memory)
    monkeypatch.setattr(placing, "graphs_of", lambda device: graphs)
    monkeypatch.setattr(placing, "can_pack", lambda dtype: pytest.fail("this is for a CPU"))
    pipeline = Pipeline.load(tiny_model.config, tiny_model.checkpoint, device="cpu")
    recordings_of(pipeline.model)._clock = graphs.clock
    # Packed and plain layers sum in another order, in bfloat16 where this CPU is fast at it.
    assert np.abs(pictures(pipeline, count=4) - plain).mean() < 8
    assert graphs.recorded == 1


def on_a_card_for(count):
    """A pipeline whose card has memory for so many pictures at once, and that memory."""
    pipeline = Pipeline(random_model())
    memory = FakeMemory(10 * count, each=9)
    try_network = pipeline._try_network
    monkeypatched = memory.run

    def run(request, pictures):
        monkeypatched(pictures)
        try_network(request, pictures)

    pipeline._try_network = run
    pipeline.rooms = Rooms(memory)
    return pipeline, memory


def test_a_batch_that_does_not_fit_is_sampled_in_even_parts(monkeypatch):
    pipeline, memory = on_a_card_for(3)
    sampled = []
    sample = pipeline._sample
    monkeypatch.setattr(
        pipeline, "_sample", lambda batch, on_step: sampled.append(len(batch)) or sample(batch, on_step)
    )
    made = pictures(pipeline, count=8, steps=2)
    assert sampled == [2, 3, 3]
    assert memory.sizes == [8, 1, 2]
    alone = np.concatenate([pictures(Pipeline(random_model()), count=8, steps=2)])
    assert np.abs(made - alone).max() <= LEVELS


def test_a_run_of_the_network_has_the_rows_and_the_size_of_the_pictures():
    pipeline = Pipeline(random_model())
    guided = GenerationRequest(prompt="a cat", seed=1, height=64, width=80, sampler=SamplerConfig(steps=2))
    assert pipeline.run_network(guided, 3).shape == (6, 4, 8, 10)
    plain = GenerationRequest(
        prompt="a cat", seed=1, height=64, width=80, sampler=SamplerConfig(steps=2, guidance_scale=1.0)
    )
    assert pipeline.run_network(plain, 3).shape == (3, 4, 8, 10)


@pytest.mark.parametrize("cache_interval", [1, 2])
def test_a_run_of_the_network_takes_the_shortcuts_of_the_pictures(monkeypatch, cache_interval):
    """They take memory of their own, such as that of the map that is kept."""
    pipeline, given = Pipeline(random_model()), []
    apply_model = pipeline.model.apply_model
    monkeypatch.setattr(pipeline.model, "apply_model", lambda *words: given.append(words[3:]) or apply_model(*words))
    sampler = SamplerConfig(steps=2, shortcuts=Shortcuts(cache_interval=cache_interval))
    pipeline.run_network(GenerationRequest(prompt="a cat", seed=1, height=64, width=64, sampler=sampler), 1)
    ((recall,),) = given
    assert (recall.cache is not None) is (cache_interval > 1)


def test_shortcuts_are_not_recorded_and_everything_else_is(monkeypatch):
    """What a step computes with a cache depends on the step, and a recording would do one of them for ever."""
    model, graphs = random_model(), FakeGraphs()
    memory = memory_for_attention(monkeypatch, unsliced=False)
    make_ready_on_card(model, arithmetic(), memory, graphs)
    recordings_of(model)._clock = graphs.clock
    short = SamplerConfig(steps=2 * CALLS_BEFORE, shortcuts=Shortcuts(cache_interval=2))
    request = GenerationRequest(prompt="a cat", seed=1, height=64, width=64, sampler=short)
    expected = Pipeline(random_model()).generate([request])[0].pixels
    assert (Pipeline(model).generate([request])[0].pixels == expected).all()
    assert graphs.recorded == 0
    pictures(Pipeline(model))
    assert graphs.recorded == 1


def test_a_network_that_overflows_for_a_size_is_told_before_the_first_picture(caplog):
    pipeline, _ = on_a_card_for(8)
    pipeline.model.model.diffusion_model.out[2].bias.data.fill_(float("nan"))
    pipeline.attempt(requests(count=2, steps=2))
    assert "the network gives NaN in float32 for 64x64 px on this card" in caplog.text
    assert "precision=full does it at once" in caplog.text


@pytest.mark.gpu
def test_a_loaded_pipeline_on_a_real_card_paints_what_the_cpu_paints(tiny_model, monkeypatch):
    monkeypatch.undo()
    expected = pictures(Pipeline.load(tiny_model.config, tiny_model.checkpoint, device="cpu"))
    pipeline = Pipeline.load(tiny_model.config, tiny_model.checkpoint, device=str(pick_device("gpu")))
    assert pipeline.model.dtype is not torch.float32
    assert np.abs(pictures(pipeline) - expected).mean() < 8
    assert (pictures(pipeline) == pictures(pipeline)).all()
