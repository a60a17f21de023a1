"""The worker's pictures are those of the pipeline, with their parameters inside, from the files that were planned."""

from __future__ import annotations

import dataclasses
import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from jobs.config import read_settings
from jobs.records import read_records
from jobs.submit.launch import missing_shards, run_here
from jobs.submit.prepare import Prepared
from jobs.worker.model import (
    check_unchanged,
    load,
    naming_lack_of_memory,
    picture_or_second_try,
    settled,
    to_picture,
)
from ldm.errors import GenerationError, NoMemoryError, WeightsError
from ldm.inference import runtime
from ldm.inference.images import encode, read_parameters
from ldm.inference.infotext import parse_infotext
from ldm.inference.pipeline import GeneratedImage, Pipeline
from ldm.inference.spec import GenerationRequest, SamplerConfig
from tests.cards import FakeGraphs, FakeMemory
from tests.jobs.support import prepare
from tests.tiny import random_model


@pytest.fixture
def prepared(tmp_path, tiny_model) -> Prepared:
    words = ["model=sd-v1", f"config={tiny_model.config}", f"checkpoint={tiny_model.checkpoint}", "safety=off"]
    return prepare(tmp_path, *words, "steps=2", "precision=full", "device=cpu", count=3)


def test_a_run_here_makes_the_pictures_of_the_pipeline(prepared, tiny_model):
    status = run_here(
        prepared.run,
        read_settings(["cards=2"], prepared.info.settings),
        missing_shards(prepared.run, prepared.info),
        on_wait=lambda: None,
    )
    logs = "".join(path.read_text() for path in prepared.run.logs.iterdir())
    assert status == 0, logs
    pipeline = Pipeline.load(tiny_model.config, tiny_model.checkpoint, device="cpu", precision=precision())
    for shard in range(prepared.info.plan.shards):
        for image in prepared.run.shard(shard).images:
            path = prepared.run.image_path(image.file)
            [expected] = pipeline.generate([image.request])
            with Image.open(path) as picture:
                # Not equal: in a batch of two the CPU sums in another order than in a batch of one.
                assert np.abs(np.asarray(picture).astype(int) - expected.pixels.astype(int)).max() <= 2
            text = parse_infotext(read_parameters(path))
            assert text.prompt == image.request.prompt
            assert text.parameters["Seed"] == str(image.request.seed)
            assert text.parameters["Model"] == "tiny"
            assert prepared.info.model.checkpoint_sha256.startswith(text.parameters["Model hash"])
        devices = {record.device for record in read_records(prepared.run.records_path(shard)).images.values()}
        assert all(device.startswith("cpu ") for device in devices)


def precision():
    from ldm.inference.runtime import Precision

    return Precision.FULL


def test_the_model_is_loaded_once_and_says_its_device(prepared):
    generate, device, _ = load(prepared.info, prepared.info.settings.spec)
    pictures = generate([image.request for image in prepared.run.shard(0).images])
    assert len(pictures) == 2
    assert all(picture.encode().startswith(b"\x89PNG") for picture in pictures)
    assert device.startswith("cpu ")


def test_the_device_is_named_with_the_dtype_that_it_computes_in(prepared):
    assert load(prepared.info, prepared.info.settings.spec).device.endswith(" threads, float32")


@pytest.mark.parametrize("on_card", [False, True])
def test_batches_of_the_first_picture_are_measured_where_pictures_are_made(prepared, monkeypatch, on_card):
    waited = []
    if on_card:
        memory = FakeMemory(10)
        monkeypatch.setattr(memory, "peak", lambda work: len(work()))  # a byte a row; with guidance two a picture
        monkeypatch.setattr(runtime, "memory_of", lambda device: memory)
        graphs = FakeGraphs()
        monkeypatch.setattr(graphs, "wait", lambda: waited.append(True))
        monkeypatch.setattr(runtime, "graphs_of", lambda device: graphs)
    found = load(prepared.info, prepared.info.settings.spec).measure(small_request())
    assert (found.height, found.width, found.most) == (64, 64, 4 if on_card else None)
    assert found.tried[0].pictures == 1
    assert found.advised is not None
    assert bool(waited) is on_card


def test_a_checkpoint_of_another_size_is_refused(prepared, tmp_path):
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"x")
    model = prepared.info.model.__class__(**{**vars(prepared.info.model), "checkpoint": str(other)})
    with pytest.raises(WeightsError, match="has 1 bytes, the run was planned with"):
        check_unchanged(model)


def test_a_checkpoint_of_the_same_size_is_refused_where_it_is_another(prepared, tmp_path):
    planned = Path(prepared.info.model.checkpoint)
    other = tmp_path / "other.safetensors"
    content = bytearray(planned.read_bytes())
    content[-1] ^= 1
    other.write_bytes(content)
    model = dataclasses.replace(prepared.info.model, checkpoint=str(other))
    with pytest.raises(WeightsError, match=r"is as large as the file that the run was planned with, but another"):
        load(dataclasses.replace(prepared.info, model=model), prepared.info.settings.spec)


@pytest.mark.parametrize("other", ["as large", "gone"])
def test_a_checkpoint_that_is_replaced_or_gone_while_it_is_read_is_refused(prepared, tmp_path, other):
    planned = tmp_path / "planned.safetensors"
    planned.write_bytes(Path(prepared.info.model.checkpoint).read_bytes())
    model = dataclasses.replace(prepared.info.model, checkpoint=str(planned))
    said = "was replaced while it was read" if other == "as large" else "cannot be read: No such file or directory"

    def change():
        new = tmp_path / "new.safetensors"
        new.write_bytes(planned.read_bytes())
        planned.unlink()
        if other == "as large":
            new.rename(planned)

    with settled(model):
        pass
    with pytest.raises(WeightsError, match=said), settled(model):
        change()


def test_another_config_is_refused(prepared, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_bytes(Path(prepared.info.model.config).read_bytes() + b"\n")
    model = prepared.info.model.__class__(**{**vars(prepared.info.model), "config": str(other)})
    with pytest.raises(WeightsError, match="is not as it was when the run was planned"):
        check_unchanged(model)


def test_a_checkpoint_that_is_gone_is_named(prepared):
    model = prepared.info.model.__class__(**{**vars(prepared.info.model), "checkpoint": "/gone.ckpt"})
    with pytest.raises(WeightsError, match=r"cannot read /gone\.ckpt, which the run was planned with: No such file"):
        check_unchanged(model)


def test_a_dropped_picture_has_no_file(prepared):
    image = GeneratedImage(request=GenerationRequest(prompt="a"), pixels=None, seconds=0.5, flagged=True)
    picture = to_picture(image, prepared.info)
    assert (picture.encode, picture.flagged, picture.seconds) == (None, True, 0.5)


def test_a_picture_keeps_its_pixels(prepared):
    pixels = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    image = GeneratedImage(request=GenerationRequest(prompt="a"), pixels=pixels, seconds=0.5)
    with Image.open(io.BytesIO(to_picture(image, prepared.info).encode())) as decoded:
        assert np.array_equal(np.asarray(decoded), pixels)


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_a_picture_is_in_the_format_of_the_job(tmp_path, format):
    info = prepare(tmp_path, f"format={format}", "quality=80").info
    image = GeneratedImage(request=GenerationRequest(prompt="a"), pixels=np.zeros((8, 8, 3), np.uint8), seconds=0.5)
    data = to_picture(image, info).encode()
    assert data == encode(image.pixels, format, read_parameters(io.BytesIO(data)), quality=80)
    assert parse_infotext(read_parameters(io.BytesIO(data))).prompt == "a"


@pytest.fixture
def half() -> Pipeline:
    """A pipeline whose pictures overflow in the precision that it is in, and only in it.

    That is float64: torch 1.10 has no half precision on a CPU.
    """
    pipeline = Pipeline(random_model().double())
    decode = pipeline.decode

    def overflow(latent):
        if not pipeline.in_full_precision:
            raise GenerationError("the model gave NaN in float64")
        return decode(latent)

    pipeline.decode = overflow  # type: ignore[method-assign]
    return pipeline


def small_request() -> GenerationRequest:
    return GenerationRequest(prompt="a cat", seed=1, height=64, width=64, sampler=SamplerConfig(steps=2))


def test_a_picture_that_overflows_in_half_precision_is_made_in_float32_and_says_so(prepared, half):
    (attempted,) = half.attempt([small_request()])
    picture = picture_or_second_try(small_request(), attempted, half, prepared.info)
    assert picture.note == "made in float32: seed 1, prompt 'a cat': the model gave NaN in float64"
    with Image.open(io.BytesIO(picture.encode())) as decoded:
        assert decoded.size == (64, 64)
    assert not half.in_full_precision


def test_a_picture_that_overflows_in_float32_too_fails_with_both_reasons(prepared, half, monkeypatch):
    def always(latent):
        raise GenerationError(f"the model gave NaN in {half.model.dtype}")

    monkeypatch.setattr(half, "decode", always)
    (attempted,) = half.attempt([small_request()])
    failure = picture_or_second_try(small_request(), attempted, half, prepared.info)
    assert re.search(r"NaN in torch.float64; in float32 too: .*NaN in torch.float32", str(failure))


def test_without_memory_for_float32_the_picture_fails_for_its_own_reason(prepared, half, monkeypatch):
    (attempted,) = half.attempt([small_request()])

    def full(requests, on_step=None):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(half, "attempt", full)
    failure = picture_or_second_try(small_request(), attempted, half, prepared.info)
    assert isinstance(failure, GenerationError)
    assert re.search(r"NaN in float64; there is no memory to try it in float32: CUDA out of memory", str(failure))
    assert not half.in_full_precision


def test_when_memory_is_full_the_pipeline_does_with_less(prepared, monkeypatch):
    told = []
    monkeypatch.setattr(Pipeline, "spare_memory", lambda pipeline: told.append("spared"))
    generate, *_ = load(prepared.info, prepared.info.settings.spec)

    def full(pipeline, requests):
        raise RuntimeError("HIP out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(Pipeline, "attempt", full)
    with pytest.raises(NoMemoryError, match="HIP out of memory"):
        generate([small_request()] * 2)
    assert told == ["spared"]


def test_torchs_lack_of_memory_is_named_whatever_torch_calls_it():
    with pytest.raises(NoMemoryError, match=r"fewer at once may fit"), naming_lack_of_memory(4):
        torch.empty(1 << 60)
    with pytest.raises(NoMemoryError, match="smaller pictures"), naming_lack_of_memory(1):
        raise RuntimeError("HIP out of memory. Tried to allocate 20.00 MiB (GPU 0; 16 GiB total capacity)")
    with pytest.raises(RuntimeError, match="HIP error: invalid device"), naming_lack_of_memory(1):
        raise RuntimeError("HIP error: invalid device function")
