"""A request gives one picture, whatever stands beside it; what is no picture is an error."""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from ldm.errors import ConfigError, DeviceError, GenerationError, RequestError, WeightsError
from ldm.inference import placing
from ldm.inference.censor import Censor
from ldm.inference.digests import sha256_of
from ldm.inference.images import encode_png
from ldm.inference.models import read_shape
from ldm.inference.packing import can_pack
from ldm.inference.pipeline import Pipeline, SeededNoise, noise_for, steps_from
from ldm.inference.placing import make_ready
from ldm.inference.runtime import Arithmetic, Precision
from ldm.inference.safety import SafetyPolicy
from ldm.inference.spec import GenerationRequest, InitImage, SamplerConfig, SamplerName, Shortcuts, Spacing
from tests.ldm.inference.test_safety import put_checker, random_weights
from tests.tiny import random_model

ROOT = Path(__file__).resolve().parents[3]

# A batch of two and a batch of one may take other kernels, whose sums differ in the last bits of float32. Through 4
# steps that stays far below one level of 255; dropped fractions turn it into at most one.
LEVELS = 1


@pytest.fixture(scope="module")
def pipeline():
    return Pipeline(random_model())


def request(prompt="a cat", seed=1, sampler=None, **fields):
    sampler = sampler or SamplerConfig(name=SamplerName.PLMS, steps=4)
    return GenerationRequest(prompt=prompt, seed=seed, height=64, width=64, sampler=sampler, **fields)


def same(a, b):
    return np.abs(a.astype(int) - b.astype(int)).max() <= LEVELS


def init_image(tmp_path, strength=0.5, size=64):
    path = tmp_path / "init.png"
    path.write_bytes(encode_png(np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)))
    return InitImage(path=str(path), sha256=sha256_of(path), strength=strength)


def test_noise_depends_on_the_seed_alone():
    shape = (4, 8, 8)
    batch = noise_for([7, 8, 9], shape)
    assert batch.dtype is torch.float32
    assert torch.equal(batch[1:2], noise_for([8], shape))
    assert torch.equal(batch[1], torch.randn(shape, generator=torch.Generator().manual_seed(8)))


def test_later_noise_of_a_picture_does_not_depend_on_its_neighbours():
    alone, among = SeededNoise([8], (4, 8, 8)), SeededNoise([7, 8], (4, 8, 8))
    for _ in range(3):
        assert torch.equal(alone.draw()[0], among.draw()[1])
    assert not torch.equal(alone.draw(), alone.draw())


@pytest.mark.parametrize(
    "sampler",
    [
        SamplerConfig(name=SamplerName.PLMS, steps=4),
        SamplerConfig(name=SamplerName.DDIM, steps=4, eta=0.7),
        SamplerConfig(name=SamplerName.DDIM, steps=4, schedule=Spacing.QUAD),
        SamplerConfig(name=SamplerName.DPM_SOLVER, steps=4),
        SamplerConfig(name=SamplerName.PLMS, steps=4, guidance_scale=1.0),
        SamplerConfig(name=SamplerName.LCM, steps=4, guidance_scale=2.0),
        SamplerConfig(name=SamplerName.PLMS, steps=4, shortcuts=Shortcuts(cache_interval=2)),
        SamplerConfig(name=SamplerName.DDIM, steps=4, shortcuts=Shortcuts(cache_interval=3, guidance_until=0.5)),
    ],
    ids=lambda config: (
        f"{config.name.value}-{config.eta}-{config.schedule.value}-{config.guidance_scale}"
        f"-{config.shortcuts.cache_interval}"
    ),
)
def test_a_picture_made_in_a_batch_is_the_one_made_alone(pipeline, sampler):
    requests = [request("a cat", 1, sampler), request("a dog in the rain", 2, sampler, negative_prompt="blur")]
    together = pipeline.generate(requests)
    for asked, image in zip(requests, together):
        assert image.request is asked
        assert image.pixels.shape == (64, 64, 3)
        assert image.pixels.dtype == np.uint8
        assert same(image.pixels, pipeline.generate([asked])[0].pixels)
    assert not same(together[0].pixels, together[1].pixels)


def test_the_same_request_gives_the_same_picture_twice(pipeline):
    first, second = (pipeline.generate([request()])[0].pixels for _ in range(2))
    assert np.array_equal(first, second)


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "a dog"},
        {"negative_prompt": "a dog"},
        {"seed": 2},
        {"sampler": SamplerConfig(steps=5)},
        {"sampler": SamplerConfig(steps=4, guidance_scale=3.0)},
        {"sampler": SamplerConfig(steps=4, name=SamplerName.DDIM)},
        {"sampler": SamplerConfig(steps=4, name=SamplerName.DDIM, schedule=Spacing.QUAD)},
        {"sampler": SamplerConfig(steps=4, name=SamplerName.DDIM, eta=1.0)},
        {"sampler": SamplerConfig(steps=4, name=SamplerName.LCM)},
        {"sampler": SamplerConfig(steps=4, shortcuts=Shortcuts(cache_interval=2))},
        {"sampler": SamplerConfig(steps=4, shortcuts=Shortcuts(guidance_until=0.5))},
    ],
    ids=str,
)
def test_every_field_reaches_the_picture(pipeline, change):
    changed = dataclasses.replace(request(), **change)
    assert not same(pipeline.generate([request()])[0].pixels, pipeline.generate([changed])[0].pixels)


def test_merged_tokens_change_a_large_picture_alike_in_a_batch_and_alone(pipeline):
    """A map of 64 px has too few places to merge."""
    short = SamplerConfig(steps=2, shortcuts=Shortcuts(merge_tokens=0.5))
    assert np.array_equal(*(pipeline.generate([request(sampler=s)])[0].pixels for s in (short, SamplerConfig(steps=2))))
    large = [dataclasses.replace(request(seed=seed, sampler=short), height=256, width=264) for seed in (1, 2)]
    together = [image.pixels for image in pipeline.generate(large)]
    for asked, pixels in zip(large, together):
        assert same(pixels, pipeline.generate([asked])[0].pixels)
    plain = dataclasses.replace(large[0], sampler=SamplerConfig(steps=2))
    assert not same(together[0], pipeline.generate([plain])[0].pixels)


@pytest.mark.parametrize(
    ("attends", "side", "reason"),
    [
        (False, 256, ": it merges in attention at the largest maps, and this model has none there"),
        (True, 64, " at 64x64 px: the largest maps have 64 places, and it merges from 1024 on"),
        (True, 256, None),
    ],
)
def test_merging_that_changes_nothing_is_told_once(caplog, monkeypatch, attends, side, reason):
    pipeline = Pipeline(random_model())
    monkeypatch.setattr(pipeline.model.model.diffusion_model, "attends_to_largest", attends)
    sampler = SamplerConfig(steps=1, shortcuts=Shortcuts(merge_tokens=0.5))
    for seed in (1, 2):
        pipeline.generate([dataclasses.replace(request(seed=seed, sampler=sampler), height=side, width=side)])
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == (reason is not None)
    assert all(message == f"merge_tokens changes nothing{reason}" for message in told)


def test_what_is_left_out_tells_which_requests_share_a_batch(pipeline):
    samplers = [SamplerConfig(steps=4, shortcuts=Shortcuts(cache_interval=interval)) for interval in (1, 2)]
    requests = [request(seed=seed, sampler=samplers[seed % 2]) for seed in range(4)]
    assert len({asked.batch_key for asked in requests}) == 2
    for asked, image in zip(requests, pipeline.generate(requests)):
        assert image.request is asked
        assert same(image.pixels, pipeline.generate([asked])[0].pixels)


def test_unlike_requests_come_back_in_their_order(pipeline, tmp_path):
    requests = [
        request(seed=1),
        dataclasses.replace(request(seed=2), height=72, width=80),
        request(seed=3, init=init_image(tmp_path)),
        request(seed=4),
        request(seed=5, sampler=SamplerConfig(name=SamplerName.DDIM, steps=3)),
    ]
    images = pipeline.generate(requests)
    assert [image.request for image in images] == requests
    assert images[1].pixels.shape == (72, 80, 3)
    for asked, image in zip(requests, images):
        assert same(image.pixels, pipeline.generate([asked])[0].pixels)
        assert image.seconds > 0
        assert not image.flagged


def test_no_requests_give_no_pictures(pipeline):
    assert pipeline.generate([]) == []


def test_the_global_generator_is_neither_used_nor_moved(pipeline):
    torch.manual_seed(1)
    first = pipeline.generate([request()])[0].pixels
    state = torch.random.get_rng_state()
    torch.manual_seed(2)
    pipeline.generate([request(sampler=SamplerConfig(name=SamplerName.DDIM, steps=3, eta=0.5))])
    second = pipeline.generate([request()])[0].pixels
    assert np.array_equal(first, second)
    torch.manual_seed(1)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_progress_counts_up_to_the_steps_that_are_taken(pipeline, tmp_path):
    seen = []
    pipeline.generate([request()], on_step=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    seen.clear()
    pipeline.generate([request(init=init_image(tmp_path))], on_step=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]


def test_a_prompt_is_encoded_once(monkeypatch):
    pipeline = Pipeline(random_model())
    encoded = []
    encode = pipeline.model.get_learned_conditioning
    monkeypatch.setattr(
        pipeline.model, "get_learned_conditioning", lambda texts: encoded.extend(texts) or encode(texts)
    )
    pipeline.generate([request("a cat", 1), request("a dog", 2), request("a cat", 3)])
    pipeline.generate([request("a cat", 4)])
    assert sorted(encoded) == ["", "a cat", "a dog"]


def test_a_prompt_that_is_cut_off_is_told_once(caplog):
    pipeline = Pipeline(random_model())
    pipeline.encode_text(["cat " * 75])
    assert not caplog.records
    pipeline.encode_text(["cat " * 76] * 2)
    (record,) = caplog.records
    assert record.getMessage().startswith("the model reads the first 75 tokens of a prompt that has 76: 'cat cat")


@pytest.mark.parametrize("name", list(SamplerName))
def test_less_strength_keeps_more_of_the_init_image(pipeline, tmp_path, name):
    sampler = SamplerConfig(name=name, steps=10)
    kept = pipeline.decode(pipeline.encode_init(*_init_fields(init_image(tmp_path)))[0]).astype(float)
    weak, strong = (
        pipeline.generate([request(sampler=sampler, init=init_image(tmp_path, strength))])[0].pixels
        for strength in (0.1, 1.0)
    )
    assert np.abs(weak - kept).mean() < np.abs(strong - kept).mean()


def _init_fields(init):
    return init.path, init.sha256, 64, 64


def test_an_init_image_of_another_size_is_fitted_and_encoded_the_same_way_every_time(pipeline, tmp_path):
    init = init_image(tmp_path, size=100)
    first, second = pipeline.generate([request(init=init), request(init=init)])
    assert first.pixels.shape == (64, 64, 3)
    assert np.array_equal(first.pixels, second.pixels)


def test_an_init_image_that_changed_since_it_was_asked_for_is_refused(tmp_path):
    init = init_image(tmp_path)
    (tmp_path / "init.png").write_bytes(encode_png(np.zeros((64, 64, 3), dtype=np.uint8)))
    with pytest.raises(RequestError, match="is not the one that was asked for: its sha256 is no longer"):
        Pipeline(random_model()).generate([request(init=init)])


@pytest.mark.parametrize(
    ("steps", "strength", "taken"), [(50, 0.75, 37), (50, 1.0, 50), (30, 0.5, 15), (1000, 1.0, 999), (3, 0.34, 1)]
)
def test_strength_is_counted_in_steps_as_the_original_counts(pipeline, steps, strength, taken):
    config = SamplerConfig(name=SamplerName.DDIM, steps=steps)
    init = InitImage(path="a.png", sha256="", strength=strength)
    assert steps_from(init, pipeline.sampler(config), config) == taken


def test_a_strength_of_no_step_at_all_is_refused():
    with pytest.raises(RequestError, match=r"strength 0\.05 of 10 steps is no step at all; it must be at least 0\.1"):
        request(sampler=SamplerConfig(steps=10), init=InitImage(path="a.png", sha256="", strength=0.05))


def test_numbers_that_overflowed_are_an_error_that_names_the_picture():
    pipeline = Pipeline(random_model())
    pipeline.model.model.diffusion_model.out[2].bias.data.fill_(float("nan"))
    with pytest.raises(
        GenerationError,
        match=r"seed 1, prompt 'a cat': the model gave NaN in float32 .*; try another seed$",
    ):
        pipeline.generate([request()])


def test_a_picture_of_one_colour_is_an_error():
    pipeline = Pipeline(random_model())
    pipeline.model.first_stage_model.decoder.conv_out.weight.data.zero_()
    with pytest.raises(GenerationError, match="a single colour"):
        pipeline.generate([request()])


@pytest.fixture(scope="module")
def checkers(tmp_path_factory):
    """Two checkers: `all` flags every picture, as no cosine is below its thresholds; `none` flags none."""
    folders = {}
    for name, threshold in (("all", -2.0), ("none", 2.0)):
        weights = random_weights()
        weights["concept_embeds_weights"] = torch.full((17,), threshold)
        weights["special_care_embeds_weights"] = torch.full((3,), 2.0)
        folders[name] = put_checker(tmp_path_factory.mktemp("checker") / name, weights)
    return folders


@pytest.mark.slow  # importing transformers
@pytest.mark.parametrize("policy", [SafetyPolicy.KEEP, SafetyPolicy.BLUR, SafetyPolicy.BLACK, SafetyPolicy.DROP])
def test_a_flagged_picture_is_dealt_with_and_told(pipeline, checkers, policy):
    plain = pipeline.generate([request()])[0].pixels
    (image,) = Pipeline(pipeline.model, Censor(checkers["all"], policy)).generate([request()])
    assert image.flagged
    if policy is SafetyPolicy.DROP:
        assert image.pixels is None
    elif policy is SafetyPolicy.BLACK:
        assert image.pixels.max() == 0
    else:
        assert np.array_equal(image.pixels, plain) is (policy is SafetyPolicy.KEEP)


@pytest.mark.slow  # importing transformers
def test_a_picture_that_passes_is_left_as_it_is(pipeline, checkers):
    (image,) = Pipeline(pipeline.model, Censor(checkers["none"], SafetyPolicy.BLACK)).generate([request()])
    assert not image.flagged
    assert np.array_equal(image.pixels, pipeline.generate([request()])[0].pixels)


def test_the_checker_is_not_read_before_there_is_a_picture(pipeline, tmp_path):
    censored = Pipeline(pipeline.model, Censor(tmp_path / "nowhere", SafetyPolicy.BLACK))
    with pytest.raises(WeightsError, match="nowhere"):
        censored.generate([request()])


def test_a_loaded_pipeline_paints_as_the_model_in_memory(tiny_model, pipeline):
    loaded = Pipeline.load(tiny_model.config, tiny_model.checkpoint, device="cpu", precision=Precision.FULL)
    assert same(loaded.generate([request()])[0].pixels, pipeline.generate([request()])[0].pixels)
    assert loaded.report.file == tiny_model.checkpoint


def test_fast_precision_paints_almost_the_same(tiny_model, pipeline):
    fast = Pipeline.load(tiny_model.config, tiny_model.checkpoint, device="cpu")
    difference = fast.generate([request()])[0].pixels.astype(int) - pipeline.generate([request()])[0].pixels
    # bfloat16 keeps 8 bits of a number; through 4 steps of a random network that is a few levels of 255.
    assert np.abs(difference).mean() < 8


def test_the_tokenizer_asked_for_is_the_one_used(tiny_model, tmp_path):
    with pytest.raises(WeightsError, match=f"no CLIP tokenizer: .*--clip: {tmp_path}"):
        Pipeline.load(tiny_model.config, tiny_model.checkpoint, device="cpu", clip=str(tmp_path))


def test_an_unknown_device_is_refused_before_weights_are_read(tiny_model, tmp_path):
    with pytest.raises(DeviceError, match="device must be one of"):
        Pipeline.load(tiny_model.config, tmp_path / "none.ckpt", device="tpu")


def test_one_picture_that_overflows_costs_its_batch_nothing(pipeline, monkeypatch):
    good, bad = request(seed=1), request(seed=2)
    alone = pipeline.generate([good, request(seed=3)])
    decode, calls = pipeline.decode, []

    def overflow_second(latent):
        calls.append(latent)
        if len(calls) == 2:
            raise GenerationError("the model gave NaN")
        return decode(latent)

    monkeypatch.setattr(pipeline, "decode", overflow_second)
    first, second = pipeline.attempt([good, bad])
    assert np.array_equal(first.pixels, alone[0].pixels)
    assert isinstance(second, GenerationError)
    assert str(second) == "seed 2, prompt 'a cat': the model gave NaN"


def test_float32_for_one_picture_leaves_the_model_as_it_was():
    half = Pipeline(random_model().double())  # torch 1.10 has no half precision on a CPU
    before = {name: value.clone() for name, value in half.model.state_dict().items()}
    first = half.generate([request()])[0].pixels
    with half.in_float32():
        assert {parameter.dtype for parameter in half.model.parameters()} == {torch.float32}
        assert same(half.generate([request()])[0].pixels, first)
    assert all(torch.equal(value, before[name]) for name, value in half.model.state_dict().items())
    assert np.array_equal(half.generate([request()])[0].pixels, first)


class Ending(BaseException):
    """As a signal that ends a worker."""


@pytest.mark.parametrize("ending", [Ending(), GenerationError("the model gave NaN")])
def test_what_ends_a_process_is_not_hidden_by_a_model_that_cannot_be_had_back(ending, monkeypatch):
    pipeline = Pipeline(random_model().double())

    def full(parameter, *_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore words")

    expected = pytest.raises(Ending)
    if not isinstance(ending, Ending):
        said = r"from float32: the model gave NaN; then CUDA error: an illegal memory access was encountered$"
        expected = pytest.raises(DeviceError, match=said)
    with expected, pipeline.in_float32():
        monkeypatch.setattr(torch.Tensor, "to", full)
        raise ending


@pytest.mark.parametrize("fails", ["unpack", "pack"])
def test_a_model_that_runs_out_of_memory_on_its_way_to_float32_or_back_is_whole_or_the_process_ends(fails, monkeypatch):
    """Half of its layers in another form would give other pictures from then on."""
    model = random_model()
    make_ready(model, Arithmetic(torch.float32, "for a test"))
    pipeline, forms = Pipeline(model), [type(layer) for layer in model.modules()]
    real = getattr(placing, fails)

    def out_of_memory_half_way(model, *words):
        done = real(model.first_stage_model, *words)
        assert done or not can_pack(torch.float32)
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: 1 bytes")

    monkeypatch.setattr(placing, fails, out_of_memory_half_way)
    expected = pytest.raises(RuntimeError, match="can't allocate") if fails == "unpack" else contextlib.nullcontext()
    if fails == "pack" and can_pack(torch.float32):
        expected = pytest.raises(DeviceError, match=r"cannot be had back from float32: .*can't allocate memory")
    with expected, pipeline.in_float32():
        assert fails == "pack"
    if fails == "unpack":
        assert [type(layer) for layer in model.modules()] == forms
        assert all(parameter.dtype is torch.float32 for parameter in model.parameters())


def test_a_model_without_words_is_refused(tiny_model, tmp_path):
    config = OmegaConf.load(tiny_model.config)
    config.model.params.cond_stage_config = "__is_unconditional__"
    OmegaConf.save(config, tmp_path / "without.yaml")
    weights = {name: value for name, value in random_model().state_dict().items() if "cond_stage" not in name}
    torch.save(weights, str(tmp_path / "without.ckpt"))
    with pytest.raises(ConfigError, match=r"cond_stage_config of .*without\.yaml must be a text encoder"):
        Pipeline.load(tmp_path / "without.yaml", tmp_path / "without.ckpt", device="cpu")
    with pytest.raises(ConfigError, match=r"without\.yaml: cond_stage_config must be a text encoder, .* got '__is_unc"):
        read_shape(tmp_path / "without.yaml")


def out_of_memory(*_args):
    raise RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: 1 bytes")


def test_what_does_not_fit_into_memory_is_made_in_strips(monkeypatch):
    pipeline = Pipeline(random_model())
    latent, pixels = noise_for([1], (4, 8, 8))[0], np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)
    painted, encoded = pipeline.decode(latent), pipeline.encode_image(pixels)
    first_stage = pipeline.model.first_stage_model
    monkeypatch.setattr(first_stage.decoder, "forward", out_of_memory)
    monkeypatch.setattr(first_stage.encoder, "forward", out_of_memory)
    # Sums in another order: a last bit, which may be the one that a pixel's fraction is dropped by.
    assert np.abs(pipeline.decode(latent).astype(int) - painted).max() <= 1
    assert torch.allclose(pipeline.encode_image(pixels), encoded, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_one_number_that_overflowed_is_enough(number, dtype, monkeypatch):
    pipeline, image = Pipeline(random_model()), torch.randn(1, 3, 64, 64).to(dtype)
    monkeypatch.setattr(pipeline.model, "decode_first_stage", lambda _: image)
    assert pipeline.decode(noise_for([1], (4, 8, 8))[0]).shape == (64, 64, 3)
    image[0, 1, 7, 9] = number
    with pytest.raises(GenerationError, match="NaN"):
        pipeline.decode(noise_for([1], (4, 8, 8))[0])


def test_other_errors_of_the_first_stage_are_not_tried_again(monkeypatch):
    pipeline = Pipeline(random_model())

    def broken(*_args):
        raise RuntimeError("a driver's error")

    monkeypatch.setattr(pipeline.model.first_stage_model.decoder, "forward", broken)
    with pytest.raises(RuntimeError, match="a driver's error"):
        pipeline.decode(noise_for([1], (4, 8, 8))[0])


READY_TO_DECODE = """
import resource, sys, torch
from pathlib import Path
from ldm.inference.pipeline import Pipeline, noise_for
from tests.tiny import random_model

def kib(name):
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith(name + ":")))

torch.set_num_threads(1)
pipeline = Pipeline(random_model())
pipeline.decode(noise_for([1], (4, 8, 8))[0])
latent = noise_for([1], (4, 96, 96))
before = kib("VmSize")
"""
MEMORY_NEEDED = """
with torch.inference_mode():
    pipeline.model.decode_first_stage(latent, in_strips=sys.argv[1] == "strips")
print(kib("VmPeak") - before)
"""
WITH_LITTLE_MEMORY = """
resource.setrlimit(resource.RLIMIT_AS, ((before + int(sys.argv[1])) << 10,) * 2)
try:
    with torch.inference_mode():
        pipeline.model.decode_first_stage(latent)
    print("fits")
except RuntimeError as error:
    print("does not fit")
print(pipeline.decode(latent[0]).shape)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the limit is set by what /proc says")
def test_a_picture_is_made_where_the_plain_way_has_too_little_memory():
    """A real limit, half-way between what the two ways are seen to take: how much that is depends on the processor."""
    plain, strips = (int(_decode_large(MEMORY_NEEDED, way)) for way in ("plain", "strips"))
    assert strips < 0.6 * plain
    said = _decode_large(WITH_LITTLE_MEMORY, str((plain + strips) // 2))
    assert said.splitlines() == ["does not fit", "(768, 768, 3)"]


def _decode_large(what: str, word: str) -> str:
    command = [sys.executable, "-c", READY_TO_DECODE + what, word]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
