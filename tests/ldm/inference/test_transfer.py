"""What is sent arrives as it was, whatever its dtype, size and order, over buffers that are not filled too early."""

from __future__ import annotations

import pytest
import torch

from ldm.inference import transfer
from ldm.inference.checkpoint import load_model
from ldm.inference.runtime import pick_device
from ldm.inference.transfer import Sender, send_draw, sender_to
from tests.tiny import CONFIG

CPU = torch.device("cpu")


class FakeLanes:
    """Lanes of plain memory, which note when a copy was told of, by its number, and when one was waited for."""

    def __init__(self):
        self.buffers = []
        self.told = []

    def buffer(self, count, dtype):
        self.buffers.append(torch.empty(count, dtype=dtype))
        return self.buffers[-1]

    def mark(self):
        number = sum(isinstance(each, int) for each in self.told)
        self.told.append(number)
        return lambda: self.told.append(f"wait {number}")


@pytest.fixture
def small_buffers(monkeypatch):
    monkeypatch.setattr(transfer, "BUFFER_BYTES", 64)


def tensors():
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(7, 5, 3, generator=generator)
    return {
        "several buffers": numbers,
        "part of a buffer": numbers[0, 0],
        "exactly two": numbers.flatten()[:32],
        "transposed": numbers.transpose(0, 2),
        "channels last": numbers[None].contiguous(memory_format=torch.channels_last),
        "one number": numbers[0, 0, 0],
        "none": numbers[:0],
        "whole numbers": torch.arange(33),
        "half": numbers.half(),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", tensors())
def test_a_tensor_arrives_as_torchs_own_copy_would(small_buffers, name, dtype):
    tensor = tensors()[name]
    sent = Sender(CPU, FakeLanes()).send(tensor, dtype)
    assert sent.dtype is dtype
    assert sent.shape == tensor.shape
    assert torch.equal(sent, tensor.to(dtype))


def test_a_buffer_is_filled_anew_once_the_card_has_fetched_and_the_two_take_turns(small_buffers):
    lanes = FakeLanes()
    sender = Sender(CPU, lanes)
    sender.send(torch.ones(3), torch.float32)
    sender.send(torch.ones(40), torch.float32)  # three buffers
    sender.send(torch.ones(1), torch.float32)
    assert len(lanes.buffers) == 2
    assert lanes.told == [0, 1, "wait 0", 2, "wait 1", 3, "wait 2", 4]


def test_what_was_sent_may_be_written_over(small_buffers):
    tensor = torch.ones(100)
    sent = Sender(CPU, FakeLanes()).send(tensor, torch.float32)
    tensor.zero_()
    assert sent.sum() == 100


class NoLanes(FakeLanes):
    def buffer(self, count, dtype):
        raise RuntimeError("CUDA error: out of memory\nmore words")


def test_a_machine_that_pins_no_memory_leaves_the_copy_to_the_driver(caplog):
    caplog.set_level("INFO")
    sender = Sender(CPU, NoLanes())
    for number in (1, 2):
        assert torch.equal(sender.send(torch.full((3,), number), torch.float32), torch.full((3,), float(number)))
    assert caplog.text.count("no pinned memory (CUDA error: out of memory): the driver copies") == 1


@pytest.mark.parametrize("device", [None, CPU])
def test_what_stays_in_place_is_not_copied(device):
    tensor = torch.ones(3)
    assert sender_to(device).send(tensor, torch.float32) is tensor


@pytest.mark.parametrize("lanes", [FakeLanes, NoLanes])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_draw_arrives_over_lanes_and_without(monkeypatch, dtype, lanes):
    draw = torch.randn(2, 4, 8, 8)
    plain = send_draw(draw, CPU, dtype)
    monkeypatch.setattr(transfer, "lanes_to", lambda device: lanes())
    assert torch.equal(send_draw(draw, CPU, dtype), plain)
    assert torch.equal(plain, draw.to(dtype))


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_model_sent_over_lanes_is_the_model_that_is_loaded_without(monkeypatch, tiny_model, dtype):
    plain, _ = load_model(CONFIG, tiny_model.checkpoint, dtype=dtype, device=CPU)
    monkeypatch.setattr(transfer, "lanes_to", lambda device: FakeLanes())
    sent, _ = load_model(CONFIG, tiny_model.checkpoint, dtype=dtype, device=CPU)
    expected = plain.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in sent.state_dict().items())


@pytest.mark.gpu
def test_a_model_arrives_on_a_card_as_on_the_cpu(tiny_model):
    expected, _ = load_model(CONFIG, tiny_model.checkpoint, dtype=torch.float16, device=CPU)
    model, _ = load_model(CONFIG, tiny_model.checkpoint, dtype=torch.float16, device=pick_device("gpu"))
    have = model.state_dict()
    assert all(torch.equal(have[name].cpu(), value) for name, value in expected.state_dict().items())
