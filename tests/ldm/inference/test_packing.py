"""Packed layers give what plain ones give, come back bit for bit, and are done without where torch has none."""

from __future__ import annotations

import copy
import functools
import os
import platform
import re
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ldm.inference import convolving, onednn, packing
from ldm.inference.checkpoint import load_model, read_state_dict
from ldm.inference.contents import read_contents
from ldm.inference.convolving import Place
from ldm.inference.packing import PackedConv2d, PackedLinear, Scratch, can_pack, pack, unpack
from ldm.inference.pipeline import Pipeline
from ldm.inference.runtime import Precision
from ldm.inference.spec import GenerationRequest, SamplerConfig
from ldm.inference.tensors import TensorReader
from ldm.modules.attention import GEGLU
from ldm.modules.diffusionmodules import winograd
from ldm.modules.diffusionmodules.doubling import DoublingConv2d
from ldm.modules.processor import BF16_FLAGS, processor_flags
from tests.tiny import random_model

ROOT = Path(__file__).resolve().parents[3]
needs_packing = pytest.mark.skipif(
    not can_pack(torch.float32), reason="this torch takes no packed weights: plain layers do the work"
)
needs_bfloat16 = pytest.mark.skipif(
    not can_pack(torch.bfloat16), reason="here no weights are packed in bfloat16: plain layers do the work"
)
TORCH, SEEN_TO_PACK = tuple(map(int, torch.__version__.split(".")[:2])), (2, 13)
TELLS = can_pack(torch.float32) and hasattr(torch.ops.mkldnn, "_get_mkldnn_serialized_md")
DTYPES = [torch.float32, pytest.param(torch.bfloat16, marks=needs_bfloat16)]


@pytest.fixture(autouse=True)
def small_matrices_are_packed_too(monkeypatch):
    """So that the tests need no large ones."""
    monkeypatch.setattr(packing, "LEAST_WEIGHTS_IN_FLOAT32", 0)


@pytest.fixture(params=[0, convolving.NARROW], ids=["convolution", "product"])
def _either_way(request, monkeypatch):
    """Narrow maps convolved both ways, whichever this processor is quicker with."""
    monkeypatch.setattr(convolving, "narrow", lambda dtype: request.param)


def tolerance(dtype: torch.dtype) -> float:
    """Sums of up to 300 products near 1, in another order."""
    return 100 * torch.finfo(dtype).eps


def plain_layers() -> list[nn.Module]:
    return [
        nn.Linear(24, 40),
        nn.Linear(24, 40, bias=False),
        nn.Conv2d(24, 40, 3, padding=1),
        nn.Conv2d(24, 40, 3, stride=2),
        nn.Conv2d(24, 40, 1, bias=False),
        nn.Conv2d(24, 48, 3, padding=1, groups=2),
        nn.Conv2d(24, 40, (3, 1), padding=(1, 0), dilation=(2, 1)),
        DoublingConv2d(24, 40, 3, padding=1),
        DoublingConv2d(24, 40, 3, padding=1, bias=False),
        GEGLU(24, 40),
    ]


# Batches and sizes of the maps that come one after the other: some sizes again, also in another batch.
SHAPES = ((2, 8, 8), (1, 5, 9), (3, 3, 20), (1, 9, 5), (2, 8, 8), (1, 8, 8), (9, 8, 8))


def worst_difference(number: int, dtype: torch.dtype) -> float:
    """Of the results of a layer and of the same packed, for maps of several sizes one after the other."""
    model = wrapped(plain_layers()[number], dtype)
    packed = copy.deepcopy(model)
    assert pack(packed, dtype) == 1
    found = []
    for batch, *size in SHAPES:
        x = torch.randn(batch, 24, *size, generator=torch.Generator().manual_seed(0)).to(dtype)
        x = x if isinstance(model[0], nn.Conv2d) else x.flatten(2).transpose(1, 2)
        found.append(float((packed(x) - model(x)).abs().max()))
    return max(found)


def wrapped(layer: nn.Module, dtype: torch.dtype) -> nn.Sequential:
    return nn.Sequential(layer).to(dtype).requires_grad_(False)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the operators are oneDNN's, whose best home is x86-64")
@pytest.mark.skipif(TORCH < SEEN_TO_PACK, reason="this torch is older than those that were seen to take packed weights")
def test_a_torch_of_today_takes_packed_weights():
    """All else here is left out where it does not, so that the loss of them would go by unseen."""
    assert can_pack(torch.float32)
    assert TELLS
    assert can_pack(torch.bfloat16) or not BF16_FLAGS & processor_flags()


@needs_packing
@pytest.mark.usefixtures("_either_way")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("number", range(len(plain_layers())))
def test_a_packed_layer_gives_what_the_plain_one_gives_for_any_size(number, dtype):
    assert worst_difference(number, dtype) <= tolerance(dtype)


@needs_packing
@pytest.mark.parametrize("least", [{4: 1}, {2: 1}, {4: 9 * 8, 2: 40}])
@pytest.mark.parametrize("number", [2, 3, 5, 6, 7, 8])
def test_minimal_filtering_gives_the_same_for_any_size(number, least, monkeypatch):
    monkeypatch.setattr(convolving, "FILTERED_CHANNELS", 24)
    monkeypatch.setattr(convolving, "FILTERED_PLACES", least)
    assert worst_difference(number, torch.float32) <= tolerance(torch.float32)


@needs_packing
@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
@pytest.mark.parametrize("sides", [(8,), (8, 4, 8), (4, 8), (8, 16)])
def test_what_minimal_filtering_had_comes_back_bit_for_bit(sides, stored, monkeypatch):
    """Of two layers that share a scratch, whatever sizes of maps they saw one after the other."""
    monkeypatch.setattr(convolving, "FILTERED_CHANNELS", 24)
    monkeypatch.setattr(convolving, "FILTERED_PLACES", {4: 16 * 16, 2: 8 * 8})
    model = nn.Sequential(wrapped(nn.Conv2d(24, 40, 3, padding=1), stored), wrapped(nn.Conv2d(40, 24, 3), stored))
    model[1][0].padding = (1, 1)
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.float() if name.endswith("bias") else parameter.data
    before = copy.deepcopy(model).float()
    pack(model, torch.float32)
    for side in sides:
        x = torch.randn(1, 24, side, side, generator=torch.Generator().manual_seed(side))
        assert (model(x) - before(x)).abs().max() <= tolerance(torch.float32)
    assert model[0][0].is_filtered((8, 8))
    unpack(model)
    assert all(torch.equal(value, before.state_dict()[name]) for name, value in model.state_dict().items())


@needs_packing
def test_a_filtered_weight_of_a_smaller_precision_is_kept_in_it(monkeypatch):
    """A file's own is mapped, and takes no memory beside the transformed ones."""
    monkeypatch.setattr(convolving, "FILTERED_CHANNELS", 24)
    layer = wrapped(nn.Conv2d(24, 24, 3, padding=1, bias=False), torch.float16)
    stored = layer[0].weight.data_ptr()
    pack(layer, torch.float32)
    for side in (24, 32, 16):  # with other tiles for the last
        layer(torch.zeros(1, 24, side, side))
        assert layer[0]._way._kept.data_ptr() == stored


@needs_packing
def test_a_convolution_is_reordered_in_the_scratch():
    model = nn.Sequential(wrapped(nn.Conv2d(24, 40, 3), torch.float32), nn.Sequential(nn.Conv2d(40, 40, 3)))
    pack(model.requires_grad_(False), torch.float32)
    scratch = model[0][0]._scratch
    model(torch.zeros(1, 24, 8, 8))
    assert scratch._memory.numel() == 24 * 40 * 9


@pytest.mark.parametrize(
    ("channels", "side", "dtype", "tile"),
    [
        (128, 11, torch.float32, 0),
        (128, 12, torch.float32, 2),
        (128, 24, torch.float32, 4),
        (64, 24, torch.float32, 0),
        (128, 24, torch.bfloat16, 0),
    ],
)
def test_minimal_filtering_is_for_large_maps_of_many_channels_in_float32(channels, side, dtype, tile):
    assert Place((channels, channels, 3, 3), (1, 1), (1, 1), (1, 1), 1).tile((side, side), dtype) == tile


@needs_packing
@pytest.mark.parametrize("tile", [2, 4])
def test_what_is_to_be_filtered_is(tile, monkeypatch):
    used = []
    monkeypatch.setattr(convolving, "FILTERED_CHANNELS", 8)
    monkeypatch.setattr(convolving, "FILTERED_PLACES", {tile: 1})
    monkeypatch.setattr(winograd, "convolve", lambda x, products, *_: used.append(len(products)) or x)
    packed = wrapped(nn.Conv2d(8, 8, 3, padding=1), torch.float32)
    pack(packed, torch.float32)
    packed(torch.zeros(1, 8, 8, 8))
    assert used == [(tile + 2) ** 2]


@needs_packing
def test_a_doubling_is_one_filtering_where_that_needs_fewer_products(monkeypatch):
    monkeypatch.setattr(convolving, "FILTERED_CHANNELS", 8)
    layer = DoublingConv2d(8, 8, 3, padding=1).requires_grad_(False)
    x = torch.randn(1, 8, 12, 20, generator=torch.Generator().manual_seed(0))
    expected, packed = layer(x), nn.Sequential(layer)
    pack(packed, torch.float32)
    monkeypatch.setattr(packing, "phase_weights", None)
    assert (packed[0](x) - expected).abs().max() <= tolerance(torch.float32)


@pytest.mark.parametrize(
    ("flags", "dtype", "widths"),
    [
        ("avx2", torch.float32, []),
        ("avx512_bf16", torch.bfloat16, []),
        ("avx512_bf16 amx_bf16", torch.float32, []),
        ("avx512_bf16 amx_bf16", torch.bfloat16, [4, 8]),
    ],
)
def test_narrow_maps_are_one_product_where_matrix_units_compute_them(flags, dtype, widths, monkeypatch):
    monkeypatch.setattr(convolving, "processor_flags", lambda: frozenset(flags.split()))
    for stride in (1, 2):
        place = Place((8, 8, 3, 3), (1, 1), (stride, stride), (1, 1), 1)
        found = [width for width in range(4, 21, 4) if place.is_product((20, stride * width), dtype)]
        assert found == widths


@needs_packing
@pytest.mark.usefixtures("_either_way")
@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("number", range(len(plain_layers())))
def test_what_is_unpacked_is_what_was_packed(number, dtype, used):
    model = wrapped(plain_layers()[number], dtype)
    before = copy.deepcopy(model.state_dict())
    pack(model, dtype)
    assert isinstance(model[0], packing.Packed)
    if used:
        shape = (1, 24, 8, 8) if isinstance(model[0], PackedConv2d) else (2, 24)
        model(torch.zeros(shape, dtype=dtype))
    assert unpack(model) == 1
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert str(model) == str(wrapped(plain_layers()[number], dtype))


@needs_packing
@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("stored", [torch.float16, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("number", range(len(plain_layers())))
def test_weights_of_another_precision_are_rounded_as_if_they_had_been_before(number, dtype, stored, used):
    plain = wrapped(plain_layers()[number], stored)
    left, converted = copy.deepcopy(plain), copy.deepcopy(plain).to(dtype)
    for name, parameter in left.named_parameters():
        parameter.data = parameter.data.to(dtype) if name.endswith("bias") else parameter.data
    for model in (left, converted):
        assert pack(model, dtype) == 1
    if used:
        x = torch.randn(1, 24, 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
        x = x if isinstance(left[0], PackedConv2d) else x.flatten(2).transpose(1, 2)
        assert torch.equal(left(x), converted(x))
    for model in (left, converted):
        unpack(model)
    for name, value in plain.state_dict().items():
        assert left.state_dict()[name].dtype is dtype
        assert torch.equal(left.state_dict()[name], value.to(dtype))
        assert torch.equal(converted.state_dict()[name], value.to(dtype))


@needs_packing
def test_layers_share_a_scratch_until_the_last_of_them_is_packed():
    model = nn.Sequential(nn.Sequential(*(nn.Linear(24, 24) for _ in range(3)))).requires_grad_(False)
    x = torch.randn(2, 24)
    expected = copy.deepcopy(model).bfloat16().float()(x)
    in_bfloat16(model)
    pack(model, torch.float32)
    scratch = weakref.ref(model[0][0]._scratch)
    assert all(layer._scratch is scratch() for layer in model[0])
    first, second, third = model[0]
    with torch.inference_mode():
        second(first(x))
    assert scratch() is not None
    third(x)
    assert scratch() is None
    assert torch.allclose(model(x), expected, rtol=1e-5, atol=1e-5)


def in_bfloat16(model: nn.Module) -> None:
    """Weights as a file of bfloat16 has them, in a model that computes in float32."""
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.bfloat16() if name.endswith("weight") else parameter.data.bfloat16().float()


@needs_packing
@pytest.mark.parametrize("number", range(len(plain_layers())))
def test_every_kind_of_layer_lets_go_of_the_scratch_once_it_is_packed(number):
    model = wrapped(plain_layers()[number], torch.float32)
    in_bfloat16(model)
    pack(model, torch.float32)
    scratch = weakref.ref(model[0]._scratch)
    x = torch.zeros(1, 24, 16, 16)
    model(x if isinstance(model[0], PackedConv2d) else x.flatten(2).transpose(1, 2))
    assert scratch() is None


@needs_packing
def test_a_weight_that_was_packed_leaves_nothing_of_its_file_in_memory(tmp_path):
    layer = nn.Linear(1024, 4096, bias=False).bfloat16()
    torch.save(layer.state_dict(), str(tmp_path / "layer.ckpt"))
    contents = read_contents(tmp_path / "layer.ckpt")
    with TensorReader(contents, mapped=True) as reader:
        layer.weight = nn.Parameter(reader.read(contents.tensors["weight"]), requires_grad=False)
    model = nn.Sequential(layer)
    pack(model, torch.float32)
    assert mapped_kib("layer.ckpt") < 1000
    model[0]._given.sum()
    assert mapped_kib("layer.ckpt") > 6000
    model(torch.zeros(1, 1024))
    assert mapped_kib("layer.ckpt") < 1000


def mapped_kib(name: str) -> int:
    """How much of a mapped file lies in this process's memory."""
    maps = Path("/proc/self/smaps").read_text(encoding="utf-8").split("VmFlags:")
    sizes = [re.search(r"^Rss: +(\d+) kB", each, re.MULTILINE) for each in maps if name in each]
    return sum(int(size.group(1)) for size in sizes if size)


class Shifted(nn.Linear):
    """A linear layer that computes something more."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 1


def gated_by(projection: nn.Linear) -> GEGLU:
    """A GEGLU with another projection than its own."""
    layer = GEGLU(4, 8)
    layer.proj = projection
    return layer


@needs_bfloat16
def test_a_gate_is_rounded_less_often_than_by_plain_layers():
    layer = GEGLU(64, 256).requires_grad_(False)
    x = torch.randn(256, 64, generator=torch.Generator().manual_seed(0))
    model, plain = (nn.Sequential(copy.deepcopy(layer)).to(torch.bfloat16) for _ in range(2))
    exact = copy.deepcopy(plain).float()(x.bfloat16().float())
    pack(model, torch.bfloat16)
    packed, expected = ((each(x.bfloat16()).float() - exact).norm() for each in (model, plain))
    assert 0 < packed < 0.95 * expected


@pytest.mark.parametrize(
    "layer",
    [
        Shifted(4, 4),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 4, 3, padding="same"),
        DoublingConv2d(4, 4, 5, padding=2),
        DoublingConv2d(4, 4, 3, padding=1, groups=2),
        nn.Embedding(4, 4),
        gated_by(Shifted(4, 16)),
    ],
)
def test_layers_that_compute_something_else_stay(layer):
    model = nn.Sequential(layer)
    assert pack(model, torch.float32) == 0
    assert model[0] is layer


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_nothing_is_packed_in_a_precision_that_the_operators_do_not_have(dtype):
    assert pack(wrapped(nn.Linear(4, 4), dtype), dtype) == 0


@needs_packing
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_packed_doubling_takes_odd_sizes_like_the_plain_one(dtype):
    layer = DoublingConv2d(8, 8, 3, padding=1).to(dtype).requires_grad_(False)
    x = torch.randn(1, 8, 10, 20, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = layer(x, (19, 40))
    packed = nn.Sequential(layer)
    pack(packed, dtype)
    assert (packed[0](x, (19, 40)) - expected).abs().max() <= tolerance(dtype)


@needs_packing
def test_small_matrices_stay_plain_where_packing_would_slow_them_down(monkeypatch):
    monkeypatch.setattr(packing, "LEAST_WEIGHTS_IN_FLOAT32", 24 * 40)
    assert pack(wrapped(nn.Linear(24, 40), torch.float32), torch.float32) == 0
    assert pack(wrapped(nn.Linear(24, 41), torch.float32), torch.float32) == 1
    assert pack(wrapped(nn.Linear(24, 40), torch.bfloat16), torch.bfloat16) == 1
    assert pack(wrapped(nn.Conv2d(4, 4, 3), torch.float32), torch.float32) == 1


def test_trying_the_operators_draws_no_random_number():
    can_pack.cache_clear()
    before = torch.get_rng_state()
    can_pack(torch.float32)
    assert torch.equal(torch.get_rng_state(), before)


def request(seed: int = 1) -> GenerationRequest:
    return GenerationRequest(prompt="a cat", seed=seed, height=64, width=64, sampler=SamplerConfig(steps=3))


def picture(pipeline: Pipeline) -> np.ndarray:
    pixels = pipeline.generate([request()])[0].pixels
    assert pixels is not None
    return pixels.astype(int)


@needs_packing
def test_a_packed_model_paints_the_same_picture():
    plain = Pipeline(random_model())
    expected = picture(plain)
    assert pack(plain.model, torch.float32) > 100
    assert np.abs(picture(plain) - expected).max() <= 1


@needs_bfloat16
def test_a_second_try_in_float32_leaves_a_packed_model_as_it_was():
    pipeline = Pipeline(random_model().to(torch.bfloat16))
    pack(pipeline.model, torch.bfloat16)
    before = picture(pipeline)
    with pipeline.in_float32():
        assert pipeline.in_full_precision
        exact = picture(pipeline)
    assert np.array_equal(picture(pipeline), before)
    assert not np.array_equal(exact, before)
    assert unpack(pipeline.model) > 100


def test_a_torch_without_the_operators_does_without(monkeypatch, tiny_model):
    def missing(*words):
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_reorder_linear_weight'")

    can_pack.cache_clear()
    monkeypatch.setitem(packing.KINDS, nn.Linear, missing)
    try:
        assert not can_pack(torch.float32)
        pipeline = Pipeline.load(tiny_model.config, tiny_model.checkpoint, device="cpu")
        assert unpack(pipeline.model) == 0
        assert picture(pipeline).any()
    finally:
        can_pack.cache_clear()


def test_operators_that_give_other_numbers_are_not_used(monkeypatch):
    class Wrong(PackedLinear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 1.01

    can_pack.cache_clear()
    monkeypatch.setitem(packing.KINDS, nn.Linear, Wrong)
    try:
        assert not can_pack(torch.float32)
    finally:
        can_pack.cache_clear()


@needs_packing
def test_operators_that_pack_into_no_memory_of_their_own_are_not_used(monkeypatch):
    monkeypatch.setattr(packing, "linear", lambda x, weight, bias, behind=None: nn.functional.linear(x, weight, bias))
    monkeypatch.setattr(packing.KINDS[nn.Linear], "_packed_weight", lambda self: self._weight)
    found = {}
    for kept in (torch.clone, lambda weight: weight):
        monkeypatch.setattr(packing, "linear_weight", kept)
        linear = (nn.Linear, {"in_features": 16, "out_features": 32}, (3, 16), torch.float32)
        found[kept is torch.clone] = packing._works(*linear)
    assert found == {True: True, False: False}


@needs_packing
def test_weights_of_another_precision_that_are_left_to_packing_paint_the_same_picture(tiny_model, tmp_path):
    state, _ = read_state_dict(tiny_model.checkpoint)
    torch.save({"state_dict": {name: value.half() for name, value in state.items()}}, str(tmp_path / "half.ckpt"))
    converted, _ = load_model(tiny_model.config, tmp_path / "half.ckpt", dtype=torch.float32)
    pack(converted, torch.float32)
    left = Pipeline.load(tiny_model.config, tmp_path / "half.ckpt", device="cpu", precision=Precision.FULL)
    given = [layer._given.dtype for layer in left.model.modules() if isinstance(layer, packing.Packed)]
    assert len(given) > 100
    assert set(given) == {torch.float16}
    assert {parameter.dtype for parameter in left.model.parameters()} == {torch.float32}
    converted.cond_stage_model.use_tokenizer(left.model.cond_stage_model.tokenizer.folder)
    assert np.array_equal(picture(left), picture(Pipeline(converted)))
    assert unpack(left.model) == len(given)
    assert {parameter.dtype for parameter in left.model.parameters()} == {torch.float32}


@needs_packing
def test_what_is_loaded_for_the_cpu_is_packed(tiny_model):
    pipeline = Pipeline.load(tiny_model.config, tiny_model.checkpoint, device="cpu")
    assert unpack(pipeline.model) > 100


@needs_packing
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_a_batch_gives_does_not_depend_on_the_batch_before(dtype):
    layer = nn.Conv2d(24, 40, 3, padding=1)
    batches = {rows: torch.randn(rows, 24, 16, 12, dtype=dtype) for rows in (1, 2, 3, 8, 9)}

    def packed():
        return PackedConv2d(copy.deepcopy(layer).to(dtype).requires_grad_(False), Scratch(dtype))

    alone = {rows: packed()(batch) for rows, batch in batches.items()}
    used = packed()
    for rows in (2, 9, 1, 8, 3, 2):
        assert torch.equal(used(batches[rows]), alone[rows])


TWICE = """
import torch
from torch import nn
from ldm.inference.packing import pack
torch.set_num_threads({threads})
for channels, side in ((64, 16), (128, 8), (96, 20)):
    model = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1)).requires_grad_(False)
    pack(model, torch.float32)
    batches = [torch.randn(b, channels, side, side) for b in (3, 1, 2, 5, 8, 14)]
    batches = [batch.contiguous(memory_format=torch.channels_last) for batch in batches]
    for again in (False, True):
        print("again" if again else "first", flush=True)
        for batch in batches:
            model(batch)
"""


@needs_packing
@pytest.mark.skipif(not TELLS, reason="this torch does not tell in which blocks weights lie")
@pytest.mark.skipif("avx2" not in processor_flags(), reason="this processor has no AVX2, with which it was seen")
@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2, 16])
def test_no_weight_is_put_in_other_blocks_in_a_call(threads):
    """Whatever the batch: with AVX2, with which blocks were seen to depend on it, where a processor has more, too."""
    words = {**os.environ, "ONEDNN_VERBOSE": "1", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    code = TWICE.format(threads=threads)
    said = subprocess.check_output((sys.executable, "-c", code), cwd=ROOT, env=words, text=True)
    calls = [part.split("first")[0] for part in said.split("again")[1:]]
    assert [part.count(",convolution,") for part in calls] == [6, 6, 6]
    assert [line for line in "".join(calls).splitlines() if ",reorder," in line and "x3x3," in line] == []


@needs_packing
@pytest.mark.parametrize("alike", [True, False])
def test_a_weight_that_lies_alike_for_two_batches_is_kept_once(alike, monkeypatch):
    monkeypatch.setattr(convolving, "layout", lambda packed: b"packed for 3")
    monkeypatch.setattr(
        convolving, "layout_for", lambda *kind: b"packed for 3" if alike else b"packed for %d" % kind[-2]
    )
    layer = nn.Conv2d(24, 48, 3, padding=1, groups=2).requires_grad_(False)
    before, packed = copy.deepcopy(layer), nn.Sequential(layer)
    pack(packed, torch.float32)
    for batch in (3, 1, 2, 1, 3):
        x = torch.randn(batch, 24, 8, 8)
        assert torch.allclose(packed(x), before(x), atol=1e-5)
    assert len({id(each) for each in packed[0]._way._weights.values()}) == (1 if alike else 3)
    unpack(packed)
    assert torch.equal(packed[0].weight, before.weight)


@needs_packing
def test_a_layer_whose_weight_others_read_has_it_there():
    """As torch's own encoder layer does, of which a network that a YAML names may be made."""
    layer = nn.TransformerEncoderLayer(16, 2, 64, batch_first=True).eval().requires_grad_(False)
    x, packed = torch.randn(2, 5, 16), nn.Sequential(copy.deepcopy(layer))
    assert pack(packed, torch.float32) > 0
    for _ in range(2):
        assert torch.allclose(packed(x), layer(x), atol=1e-5)
    assert torch.equal(packed[0].linear1.weight, layer.linear1.weight)


@needs_packing
def test_layers_of_one_kind_ask_once_how_their_weights_lie(monkeypatch):
    asked = []
    monkeypatch.setattr(convolving, "layout_for", functools.lru_cache()(lambda *kind: asked.append(kind) or b""))
    monkeypatch.setattr(convolving, "layout", lambda packed: b"")
    layers = [nn.Conv2d(inputs, 16, 3, padding=1) for inputs in (16, 16, 16, 8, 8)]
    packed = nn.ModuleList(layers).requires_grad_(False)
    pack(packed, torch.float32)
    for batch in (2, 1, 2, 1):
        for layer in packed:
            layer(torch.randn(batch, layer._place.shape[1], 8, 8))
    assert len(asked) == 2


@needs_packing
@pytest.mark.skipif(not TELLS, reason="this torch does not tell in which blocks weights lie")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("groups", [1, 2])
def test_what_is_told_of_a_kind_of_weight_is_how_each_of_them_lies(dtype, groups):
    numbers = ((1, 1), (1, 1), (1, 1), groups)
    weight = torch.randn(48, 24 // groups, 3, 3).to(dtype)
    for order in (torch.contiguous_format, torch.channels_last):
        packed = onednn.convolution_weight(weight.contiguous(memory_format=order), numbers, (8, 9), 3)
        told = convolving.layout_for(tuple(weight.shape), dtype, numbers, (8, 9), 3, torch.get_num_threads())
        assert told == onednn.layout(packed)
    assert onednn.layout(onednn.linear_weight(torch.zeros(48, 16))) != told, "of another weight"


@needs_packing
def test_packing_tells_what_it_has_freed(monkeypatch):
    seen = []
    monkeypatch.setattr(packing.freed, "add", lambda weight: seen.append(weight.numel()))
    layers = [nn.Linear(256, 512), nn.Conv2d(4, 8, 3)]
    scratch = Scratch(torch.float32)
    packed_linear, packed = (packing.KINDS[type(layer)](layer.requires_grad_(False), scratch) for layer in layers)
    assert seen == [], "before they are used"
    for rows in (1, 2, 9):
        packed_linear(torch.zeros(rows, 256))
    assert seen == [256 * 512], "once"
    monkeypatch.setattr(convolving, "layout_for", lambda *kind: onednn.layout(packed._way._weights[1]))
    for rows, size in ((1, 16), (2, 16), (9, 16), (1, 16), (1, 32)):
        packed(torch.zeros(rows, 4, size, size))
    assert seen == [256 * 512, *2 * [8 * 4 * 9]], "once for each size of a map"
    monkeypatch.setattr(convolving, "layout_for", lambda *kind: b"others")
    packed(torch.zeros(3, 4, 32, 32))
    assert seen == [256 * 512, *4 * [8 * 4 * 9]], "twice for a batch that wants other blocks"
