"""Devices and precisions: the real CPU everywhere, and a card faked by its torch functions beside it."""

from __future__ import annotations

import contextlib
import types

import pytest
import torch
from torch import nn

from ldm.errors import DeviceError
from ldm.inference import runtime, trial
from ldm.inference.runtime import (
    CardGraphs,
    CardLanes,
    CardMemory,
    Precision,
    choose_arithmetic,
    compute_dtype,
    describe_device,
    is_out_of_memory,
    pick_device,
    settle_card,
    without_init,
)
from ldm.modules import processor

CPU = torch.device("cpu")
CARD = torch.device("cuda")


@pytest.fixture
def no_card(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.delenv("HIP_VISIBLE_DEVICES", raising=False)


@pytest.fixture
def one_dcu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.version, "hip", "5.2.22451")
    card = types.SimpleNamespace(name="Z100SM", total_memory=16 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)


@pytest.fixture
def cpu_flags(monkeypatch, tmp_path):
    def write(flags):
        (tmp_path / "cpuinfo").write_text(f"model name\t: Some CPU\nflags\t\t: fpu sse2 {flags}\n")
        monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
        processor.processor_flags.cache_clear()
        runtime.has_fast_bf16_cpu.cache_clear()

    yield write
    processor.processor_flags.cache_clear()
    runtime.has_fast_bf16_cpu.cache_clear()


def test_auto_is_the_cpu_without_a_card_and_the_card_with_one(no_card, request):
    assert pick_device("auto") == CPU
    request.getfixturevalue("one_dcu")
    assert pick_device("auto") == CARD


def test_the_cpu_is_taken_when_asked_even_with_a_card(one_dcu):
    assert pick_device("cpu") == CPU


@pytest.mark.parametrize("wanted", ["gpu", "cuda", "dcu"])
def test_a_dcu_answers_to_every_name_of_a_card(one_dcu, wanted):
    assert pick_device(wanted) == CARD


def test_a_card_that_is_not_here_is_refused_with_what_was_seen(no_card, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(DeviceError, match=r"sees 0: HIP_VISIBLE_DEVICES is not set, CUDA_VISIBLE_DEVICES is '0,1'"):
        pick_device("gpu")


def test_a_dcu_is_refused_by_a_torch_that_was_not_built_for_one(no_card, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "12.1")
    with pytest.raises(DeviceError, match=r"'dcu' needs the platform's own build of torch, but .* a CUDA 12.1 build"):
        pick_device("dcu")


def test_an_unknown_device_is_refused_with_the_known_ones():
    with pytest.raises(DeviceError, match="one of auto, cpu, gpu, cuda, dcu, got 'tpu'"):
        pick_device("tpu")


def test_devices_are_described_for_a_record(one_dcu):
    assert describe_device(CARD) == "dcu Z100SM, 16 GiB"
    assert describe_device(CPU).startswith("cpu ")
    assert describe_device(CPU).endswith("threads")


def test_full_precision_is_float32_everywhere():
    assert compute_dtype(CPU, Precision.FULL) is compute_dtype(CARD, Precision.FULL) is torch.float32


@pytest.fixture
def card(monkeypatch):
    """A card faked by what torch says of it, and by the trials that it passes."""

    def fake(*, right=("float16",), last=("float16", "bfloat16"), hip=None, **said):
        def is_right(device, dtype, *, channels_last=False):
            name = str(dtype).replace("torch.", "")
            return name in right and (not channels_last or name in last)

        monkeypatch.setattr(trial, "is_right", is_right)
        monkeypatch.setattr(torch.version, "hip", hip)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: types.SimpleNamespace(**said))
        return str(choose_arithmetic(CARD, Precision.AUTOCAST))

    monkeypatch.delenv("PYTORCH_MIOPEN_SUGGEST_NHWC", raising=False)
    return fake


def test_a_card_computes_in_float16_with_channels_last_where_it_has_tensor_cores(card):
    assert card(major=8) == "float16, channels last (right in a trial)"
    assert card(major=8, last=()) == "float16 (right in a trial)"
    assert card(major=6) == "float16 (right in a trial)"


def test_a_dcu_keeps_channels_first_unless_its_torch_is_told_to_hand_them_on_last(card, monkeypatch):
    assert card(hip="6.3", gcnArchName="gfx936") == "float16 (right in a trial)"
    monkeypatch.setenv("PYTORCH_MIOPEN_SUGGEST_NHWC", "1")
    assert card(hip="6.3", gcnArchName="gfx936") == "float16, channels last (right in a trial)"


def test_where_float16_is_wrong_a_card_with_units_for_bfloat16_computes_in_it(card):
    both = {"right": ("bfloat16",)}
    assert card(major=8, **both) == "bfloat16, channels last (right in a trial, float16 is wrong here)"
    assert card(hip="6.3", gcnArchName="gfx936:sramecc+", **both) == (
        "bfloat16 (right in a trial, float16 is wrong here)"
    )


@pytest.mark.parametrize(
    "said", [{"major": 7}, {"hip": "5.4", "gcnArchName": "gfx906:sramecc+:xnack-"}, {"hip": "5.2", "name": "Z100SM"}]
)
def test_bfloat16_that_is_emulated_or_may_be_is_not_taken(card, said):
    expected = "float32 (float16 is wrong here, bfloat16 would be emulated)"
    assert card(right=("bfloat16",), **said) == expected


def test_a_card_at_which_all_is_wrong_computes_in_float32(card):
    assert card(right=(), major=9) == "float32 (float16 is wrong here, bfloat16 is wrong here)"


def test_arithmetic_says_why_it_was_chosen(cpu_flags):
    cpu_flags("avx2")
    assert str(choose_arithmetic(CPU, Precision.FULL)) == "float32 (as precision full asks)"
    assert str(choose_arithmetic(CPU, Precision.AUTOCAST)) == "float32 (this CPU or this torch has no fast bfloat16)"


@pytest.fixture
def switches(monkeypatch):
    """torch's own, as a build of a DCU may have set them."""
    settings = torch.backends.cudnn, torch.backends.cuda.matmul
    names = [(settings[0], "benchmark"), (settings[0], "deterministic"), *((each, "allow_tf32") for each in settings)]
    before = [getattr(owner, name) for owner, name in names]
    for (owner, name), value in zip(names, (True, False, True, True)):
        setattr(owner, name, value)
    yield lambda: tuple(getattr(owner, name) for owner, name in names)
    for (owner, name), value in zip(names, before):
        setattr(owner, name, value)


def test_a_card_computes_float32_in_full_and_the_same_every_time(switches, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", None)
    settle_card()
    assert switches() == (False, True, False, False)


def test_a_dcus_search_for_kernels_is_left_as_its_maker_set_it(switches, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "5.2.22451")
    settle_card()
    assert switches() == (True, False, False, False)


def test_the_memory_of_a_card_is_what_is_free_and_what_torch_keeps_in_reserve(monkeypatch):
    taken = {"now": 100, "most": 0}
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: {1: (1000, 4000)}[device.index])  # as before 2.5
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 300)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: taken["now"])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: taken["most"])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: taken.update(most=taken["now"]))
    memory = CardMemory(CARD)
    assert memory.free() == 1000 + 300 - 100
    taken["most"] = 9999  # of something earlier
    assert memory.peak(lambda: taken.update(most=350)) == 250


@pytest.mark.parametrize(
    "said",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB (GPU 0; 15.90 GiB total capacity)",
        "HIP out of memory. Tried to allocate 20.00 MiB",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "CUDA error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`",
        "Unable to find a valid cuDNN algorithm to run convolution",
        "[enforce fail at alloc_cpu.cpp:114] data. DefaultCPUAllocator: can't allocate memory: you tried to allocate",
    ],
)
def test_lack_of_memory_is_known_by_the_words_of_each_library(said):
    assert is_out_of_memory(RuntimeError(said))
    assert not is_out_of_memory(ValueError(said))


@pytest.mark.parametrize(
    "said", ["CUDA error: an illegal memory access was encountered", "CUBLAS_STATUS_NOT_SUPPORTED"]
)
def test_another_fault_of_a_card_is_no_lack_of_memory(said):
    assert not is_out_of_memory(RuntimeError(said))


@pytest.fixture
def streams(monkeypatch):
    """The current stream, the last, and those before; torch's own context of a stream does nothing without a card."""

    @contextlib.contextmanager
    def stream(wanted):
        before = current[-1]
        try:
            yield
        finally:
            if current[-1] != before:
                current.append(before)

    current = ["usual"]
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current[-1])
    monkeypatch.setattr(torch.cuda, "set_stream", current.append)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    return current


def test_a_graph_is_recorded_and_replayed(monkeypatch, streams):
    told = []

    class Graph:
        def replay(self):
            told.append("replay")

    class Recording:
        def __init__(self, graph):
            told.append(type(graph).__name__)

        def __enter__(self):
            told.append("begin")

        def __exit__(self, *_):
            told.append("end")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", Recording)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: told.append("wait"))
    graphs = CardGraphs(CARD)
    replay, result = graphs.record(lambda: told.append("work") or torch.ones(1))
    replay()
    graphs.wait()
    assert told == ["Graph", "begin", "work", "end", "replay", "wait"]
    assert torch.equal(result, torch.ones(1))
    assert streams == ["usual"]


def test_a_recording_that_fails_leaves_the_card_with_the_stream_that_it_had(monkeypatch, streams):
    class Recording:
        def __init__(self, graph):
            pass

        def __enter__(self):
            torch.cuda.set_stream("of the recording")

        def __exit__(self, *_):
            raise RuntimeError("operation failed due to a previous error during capture")  # and the stream stays

    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", Recording)
    with pytest.raises(RuntimeError, match="error during capture"):
        CardGraphs(CARD).record(lambda: torch.ones(1))
    assert streams == ["usual", "of the recording", "usual"]


def test_a_lane_is_pinned_memory_and_a_mark_waits_for_the_card(monkeypatch):
    told = []

    class Event:
        def record(self):
            told.append("record")

        def synchronize(self):
            told.append("wait")

    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, **words: told.append(words.pop("pin_memory")) or empty(*shape))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    lanes = CardLanes()
    assert lanes.buffer(3, torch.float16).shape == (3,)
    lanes.mark()()
    assert told == [True, "record", "wait"]


@pytest.mark.gpu
def test_a_real_card_says_its_memory_records_and_sends():
    device = pick_device("gpu")
    memory, graphs, lanes = CardMemory(device), CardGraphs(device), CardLanes()
    assert memory.free() > 0
    assert memory.peak(lambda: torch.empty(2**20, device=device)) >= 2**22
    x = torch.ones(4, device=device)
    replay, result = graphs.record(lambda: x * 2)
    x.fill_(3)
    replay()
    graphs.wait()
    assert result.tolist() == [6.0] * 4
    buffer = lanes.buffer(4, torch.float32).fill_(5)
    x.copy_(buffer, non_blocking=True)
    lanes.mark()()
    assert x.tolist() == [5.0] * 4


@pytest.mark.parametrize("flags", ["avx512f avx512_bf16", "amx_bf16 amx_tile"])
def test_autocast_is_bfloat16_on_a_cpu_that_is_fast_at_it(cpu_flags, flags):
    cpu_flags(flags)
    expected = torch.bfloat16 if trial.is_right(CPU, torch.bfloat16) else torch.float32
    assert compute_dtype(CPU, Precision.AUTOCAST) is expected


@pytest.mark.parametrize("flags", ["avx2 f16c", "avx512f avx512fp16"])
def test_autocast_is_float32_on_any_other_cpu_and_never_float16(cpu_flags, flags):
    cpu_flags(flags)
    assert compute_dtype(CPU, Precision.AUTOCAST) is torch.float32


def test_a_machine_without_cpuinfo_computes_in_float32(monkeypatch, cpu_flags, tmp_path):
    cpu_flags("")
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "nothing here")
    assert not runtime.has_fast_bf16_cpu()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Linear(4, 5), nn.Embedding(6, 7))
        self.scale = nn.Parameter(torch.zeros(3))
        self.register_buffer("table", torch.arange(4))


def test_modules_built_without_init_draw_nothing_and_keep_their_buffers():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with without_init():
        net = Net()
    assert torch.equal(torch.get_rng_state(), before)
    assert net.table.tolist() == [0, 1, 2, 3]
    expected = {name: (value.shape, value.dtype) for name, value in Net().state_dict().items()}
    assert {name: (value.shape, value.dtype) for name, value in net.state_dict().items()} == expected
    assert all(parameter.is_meta == runtime.can_leave_parameters_empty() for parameter in net.parameters())


def test_init_is_back_after_the_context_even_when_building_fails():
    with pytest.raises(ZeroDivisionError), without_init():
        1 / 0  # noqa: B018 - any failure while building
    torch.manual_seed(5)
    weight = nn.Linear(4, 4).weight
    assert not weight.is_meta
    assert weight.abs().sum() > 0
