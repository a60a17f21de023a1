"""Devices and precisions: the real CPU everywhere, and a card faked by its torch functions beside it."""

from __future__ import annotations

import types

import pytest
import torch
from torch import nn

from ldm.errors import DeviceError
from ldm.inference import runtime
from ldm.inference.runtime import Precision, compute_dtype, describe_device, pick_device, without_init
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


def test_autocast_is_float16_on_a_card():
    assert compute_dtype(CARD, Precision.AUTOCAST) is torch.float16


@pytest.mark.parametrize("flags", ["avx512f avx512_bf16", "amx_bf16 amx_tile"])
def test_autocast_is_bfloat16_on_a_cpu_that_is_fast_at_it(cpu_flags, flags):
    cpu_flags(flags)
    expected = torch.bfloat16 if runtime._runs_bf16_on_cpu() else torch.float32
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
