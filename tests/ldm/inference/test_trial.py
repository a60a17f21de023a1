"""The trial tells right arithmetic from wrong, and is small enough to be made at every start."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from ldm.inference import trial

CPU = torch.device("cpu")


def test_float32_is_right_on_the_cpu_and_gives_the_same_every_time():
    assert trial.distance(CPU, torch.float32) == 0
    assert torch.equal(trial.outcome(CPU, torch.float32), trial.outcome(CPU, torch.float32))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_right_within_a_few_roundings_or_cannot_be_computed(dtype):
    """torch 1.10 has no such operators for a CPU. Two roundings were seen, sixteen are allowed."""
    apart = trial.distance(CPU, dtype)
    assert apart == math.inf or 0 < apart < 8 * torch.finfo(dtype).eps
    assert trial.is_right(CPU, dtype) is (apart < math.inf)


@pytest.mark.skipif(not hasattr(functional, "scaled_dot_product_attention"), reason="torch before 2 lacks some of it")
def test_a_torch_of_today_computes_bfloat16_on_any_cpu():
    assert trial.is_right(CPU, torch.bfloat16)


def test_channels_last_gives_the_same_but_for_the_order_of_sums():
    usual = trial.outcome(CPU, torch.float32)
    assert (trial.outcome(CPU, torch.float32, channels_last=True) - usual).abs().max() < 1e-4


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_convolution_sees_the_order_that_is_tried(monkeypatch, channels_last):
    seen = []
    conv2d = functional.conv2d

    def looked_at(image, kernel, **words):
        seen.append((image.is_contiguous(), kernel.is_contiguous()))
        return conv2d(image, kernel, **words)

    monkeypatch.setattr(functional, "conv2d", looked_at)
    trial.outcome(CPU, torch.float32, channels_last=channels_last)
    assert seen[0] == (not channels_last, not channels_last)


def nan(image):
    return image * float("nan")


def zero(image):
    return image * 0


def slightly_too_large(image):
    return image * 1.05


def one_of_a_thousand_lost(image):
    flat = image.flatten()
    flat[::1000] = 1000
    return flat.view_as(image)


@pytest.mark.parametrize("fault", [nan, zero, slightly_too_large, one_of_a_thousand_lost])
@pytest.mark.parametrize("operator", ["linear", "silu"])
def test_an_operator_with_a_fault_is_found(monkeypatch, operator, fault):
    """With the precision of float16 in mind, of which most CPUs compute nothing."""
    trial._expected()
    right = getattr(functional, operator)
    monkeypatch.setattr(functional, operator, lambda *words: fault(right(*words)))
    assert trial.distance(CPU, torch.float32) > trial.ROUNDINGS * torch.finfo(torch.float16).eps


def test_an_operator_that_is_missing_is_no_error(monkeypatch, caplog):
    def missing(*words):
        raise RuntimeError("\"layer_norm\" not implemented for 'Half'\nand a second line")

    trial._expected()
    monkeypatch.setattr(functional, "layer_norm", missing)
    caplog.set_level("INFO")
    assert trial.distance(CPU, torch.float32) == math.inf
    assert not trial.is_right(CPU, torch.float32)
    assert "cpu does not compute in torch.float32: \"layer_norm\" not implemented for 'Half'" in caplog.text


has_fused = pytest.mark.skipif(
    not hasattr(functional, "scaled_dot_product_attention"), reason="this torch has no fused attention"
)


@has_fused
@pytest.mark.parametrize(("taken", "expected"), [(2**20, False), (2**25, True)])
def test_attention_that_takes_the_memory_of_all_scores_is_found(taken, expected):
    """8 heads of 1024 places have 16 MiB of scores in half precision, and 0.6 MiB of outcome."""
    made = []

    def peak(work):
        made.append(work())
        return taken

    assert trial.writes_all_scores(CPU, torch.bfloat16, peak) is expected
    assert made[0].shape == (1, 8, 1024, 40)


def test_without_fused_attention_there_is_nothing_to_find(monkeypatch):
    monkeypatch.delattr(functional, "scaled_dot_product_attention", raising=False)
    assert not trial.writes_all_scores(CPU, torch.float32, lambda work: 2**40)


@pytest.mark.gpu
@pytest.mark.parametrize("channels_last", [False, True])
def test_float16_is_right_on_a_card(channels_last):
    from ldm.inference.runtime import pick_device

    assert trial.is_right(pick_device("gpu"), torch.float16, channels_last=channels_last)
