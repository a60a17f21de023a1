"""img2img does what the original does, as it was typed, and more where the original crashes or refuses."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from ldm.inference.images import encode_png, read_parameters, read_picture, resize, to_pixels, to_tensor
from ldm.inference.infotext import parse_infotext
from ldm.inference.pipeline import Pipeline
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.plms import PLMSSampler
from scripts import _paint, img2img, txt2img
from tests.scripts.outputs import same, samples, written
from tests.tiny import random_model

ENJOY = "Your samples are ready and waiting for you here: \n{outdir} \n \nEnjoy.\n"


@pytest.fixture
def init(tmp_path):
    """A picture of 100 x 70 px: painted on 96 x 64."""
    path = tmp_path / "init.png"
    path.write_bytes(encode_png(np.random.default_rng(0).integers(0, 256, (70, 100, 3), dtype=np.uint8)))
    return path


def replay(sampler_class, init, *, strength_steps, steps=4):
    """The pictures by the sampler alone: encoded, noised for the whole batch after one seed, decoded."""
    model = random_model()
    image = to_tensor(resize(read_picture(init), height=64, width=96))
    latent = model.get_first_stage_encoding(model.encode_first_stage(image).mode()).repeat(2, 1, 1, 1)
    sampler = sampler_class(model)
    sampler.make_schedule(steps)
    torch.manual_seed(42)
    noised = sampler.stochastic_encode(latent, strength_steps)
    cond, uncond = model.get_learned_conditioning(["a cat"] * 2), model.get_learned_conditioning([""] * 2)
    latents = sampler.decode(noised, cond, strength_steps, 5.0, uncond)
    return to_pixels(model.decode_first_stage(latents))


@pytest.mark.parametrize(("options", "sampler_class"), [((), DDIMSampler), (("--plms",), PLMSSampler)])
@pytest.mark.parametrize("strength", [0.75, 1.0])
def test_the_defaults_paint_two_pictures_from_the_init_image(script, tmp_path, init, options, sampler_class, strength):
    steps = round(4 * strength)
    code, out, err = script(
        "--init-img", init, "--prompt", "a cat", "--strength", strength, *options, module=img2img, steps=4
    )
    outdir = tmp_path / "out"
    assert code == 0
    assert written(outdir) == ["grid-0000.png", "samples/00000.png", "samples/00001.png"]
    for made, expected in zip(samples(outdir), replay(sampler_class, init, strength_steps=steps)):
        assert same(made, expected)
    assert f"loaded input image of size (100, 70) from {init}\n" in out
    assert f"target t_enc is {steps} steps\n" in out
    assert f"Running {sampler_class.name} Sampling with {steps} timesteps\n" in out
    assert out.endswith(ENJOY.format(outdir=outdir))
    for bar in ("Sampling:", "data:", "Decoding image:"):
        assert bar in err


def test_each_picture_tells_what_it_started_from(script, tmp_path, init):
    assert script("--init-img", init, "--prompt", "a cat", "--n_samples", 1, module=img2img, steps=4)[0] == 0
    told = parse_infotext(read_parameters(tmp_path / "out/samples/00000.png")).parameters
    assert told["Size"] == "96x64"
    assert told["CFG scale"] == "5"
    assert told["Denoising strength"] == "0.75"
    assert len(told["Init image hash"]) == 10


def test_a_short_last_batch_and_a_fixed_code_work_here_too(script, tmp_path, init):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\na dog\na cat\n")
    assert script("--init-img", init, "--from-file", prompts, "--fixed_code", module=img2img, steps=4)[0] == 0
    first, second, third = samples(tmp_path / "out")
    assert same(first, third), "the same prompt from the same noise, at the same place of another batch"
    assert not same(first, second)


def test_dpm_solver_starts_from_a_picture_too(script, tmp_path, init):
    assert script("--init-img", init, "--dpm_solver", "--n_samples", 1, module=img2img, steps=4)[0] == 0
    assert samples(tmp_path / "out")[0].shape == (64, 96, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "the following arguments are required: --init-img; see --help"),
        (("--init-img", "none.png"), "init image not found: none.png"),
        (("--init-img", __file__), f"init image must be a picture that Pillow can read, {__file__} is not"),
        (("--init-img", "INIT", "--strength", 0), "strength must be above 0 and at most 1, got 0.0"),
        (("--init-img", "INIT", "--strength", 1.5), "strength must be above 0 and at most 1, got 1.5"),
        (("--init-img", "INIT", "--strength", 0.01), "strength 0.01 of 4 steps is no step at all"),
        (("--init-img", "SMALL"), "init image must have at least 32 px a side, "),
        (("--init-img", "INIT", "--H", 64), "unrecognized arguments: --H 64"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_bad_input_is_one_line_and_leaves_nothing(script, tmp_path, init, options, message):
    small = tmp_path / "small.png"
    small.write_bytes(encode_png(np.zeros((31, 64, 3), dtype=np.uint8)))
    code, _, err = script(*({"INIT": init, "SMALL": small}.get(o, o) for o in options), module=img2img, steps=4)
    assert code == 2
    assert err.startswith(f"img2img.py: error: {message}")
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_scripts_differ_by_the_init_image_and_hardly_anything_else():
    own, other = (
        vars(script.build_parser().parse_args(given))
        for script, given in [(img2img, ["--init-img", "a.png"]), (txt2img, [])]
    )
    assert own.keys() - other.keys() == {"init_img", "strength"}
    assert other.keys() - own.keys() == {"H", "W"}
    assert {key: own[key] for key in own if own[key] != other.get(key)} == {
        "init_img": "a.png", "strength": 0.75, "outdir": "outputs/img2img-samples", "n_iter": 1, "n_samples": 2,
    }  # fmt: skip


def test_an_init_image_that_overflows_is_encoded_again_in_float32(script, tmp_path, init, monkeypatch):
    options = ("--init-img", init, "--prompt", "a cat", "--n_iter", 1, "--skip_grid")
    script(*options, module=img2img)
    expected = samples(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    pipeline = Pipeline(random_model().double())
    encode = pipeline.encode_image

    def overflow(pixels):
        return encode(pixels) * (1.0 if pipeline.in_full_precision else float("nan"))

    monkeypatch.setattr(pipeline, "encode_image", overflow)
    monkeypatch.setattr(_paint, "load", lambda order: pipeline)
    code, _, err = script(*options, module=img2img)
    assert code == 0
    assert "trying float32" in err
    assert all(same(*pair) for pair in zip(samples(tmp_path / "out"), expected))
    assert len(expected) == 2
