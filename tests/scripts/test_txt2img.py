"""txt2img does what the original does, as it was typed, and ends in one line where the original crashes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.errors import GenerationError
from ldm.inference.images import make_grid, read_parameters, read_picture, to_pixels
from ldm.inference.infotext import parse_infotext
from ldm.inference.pipeline import Pipeline
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.dpm_solver import DPMSolverSampler
from ldm.models.diffusion.lcm import LCMSampler
from ldm.models.diffusion.plms import PLMSSampler
from scripts import _paint, img2img, txt2img
from tests.ldm.inference.test_safety import put_checker, random_weights
from tests.scripts.outputs import same, samples, written
from tests.tiny import random_model

SCRIPT = Path(txt2img.__file__)
CAT = "a photograph of a cat playing a white ball in a lovely garden"
ENJOY = "Your samples are ready and waiting for you here: \n{outdir} \n \nEnjoy.\n"


def replay(sampler_class, *, batches, prompts, code=None):
    """The pictures by the sampler alone: one seed, then batch after batch without a start noise of ours."""
    model = random_model()
    torch.manual_seed(42)
    pictures = []
    for _ in range(batches):
        cond = model.get_learned_conditioning(prompts)
        latents, _ = sampler_class(model).sample(
            S=2,
            batch_size=len(prompts),
            shape=(4, 8, 8),
            conditioning=cond,
            unconditional_conditioning=model.get_learned_conditioning([""] * len(prompts)),
            unconditional_guidance_scale=7.5,
            x_T=code,
        )
        pictures += to_pixels(model.decode_first_stage(latents))
    return pictures


def test_the_defaults_paint_six_pictures_and_a_grid_and_say_what_the_original_says(script, tmp_path):
    code, out, err = script("--prompt", CAT, "--plms")
    outdir = tmp_path / "out"
    assert code == 0
    assert written(outdir) == ["grid-0000.png", *(f"samples/{i:05}.png" for i in range(6))]
    begins = [
        "Global seed set to 42",
        "Loading model from ",
        "Took the plain weights",
        "LatentDiffusion: Running in eps-prediction mode",
        "DiffusionWrapper has 1.",
        "making attention of type 'vanilla' with ",
        "Working with z of shape (1, 4, 8, 8) = 256 dimensions.",
        "making attention of type 'vanilla' with ",
        *["Data shape for PLMS sampling is (3, 4, 8, 8)", "Running PLMS Sampling with 2 timesteps"] * 2,
    ]
    assert [line[: len(begin)] for line, begin in zip(out.split("\n"), begins)] == begins
    assert out.endswith(ENJOY.format(outdir=outdir))
    for bar in ("Sampling:", "data:", "PLMS Sampler:"):
        assert bar in err


def test_the_grid_shows_all_pictures_a_batch_in_a_row(script, tmp_path):
    script()
    assert np.array_equal(read_picture(tmp_path / "out/grid-0000.png"), make_grid(samples(tmp_path / "out"), per_row=3))


@pytest.mark.parametrize(
    ("options", "sampler_class"),
    [
        ((), DDIMSampler),
        (("--plms",), PLMSSampler),
        (("--plms", "--dpm_solver"), DPMSolverSampler),
        (("--plms", "--lcm"), LCMSampler),
    ],
)
def test_random_numbers_are_drawn_as_the_original_draws_them(script, tmp_path, options, sampler_class):
    assert script("--prompt", CAT, "--n_samples", 2, *options)[0] == 0
    expected = replay(sampler_class, batches=2, prompts=[CAT] * 2)
    for made, wanted in zip(samples(tmp_path / "out"), expected):
        assert same(made, wanted)


def test_a_fixed_code_starts_every_batch_alike(script, tmp_path):
    assert script("--prompt", CAT, "--fixed_code", "--n_samples", 2)[0] == 0
    first, second, third, fourth = samples(tmp_path / "out")
    assert np.array_equal(first, third)
    assert np.array_equal(second, fourth)
    assert not same(first, second)
    torch.manual_seed(42)
    expected = replay(DDIMSampler, batches=1, prompts=[CAT] * 2, code=torch.randn(2, 4, 8, 8))
    assert same(first, expected[0])


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ((), "Data shape for DDIM sampling is (1, 4, 8, 8), eta 0.0\nRunning DDIM Sampling with 30 timesteps"),
        (("--ddim_eta", 0.5), "Data shape for DDIM sampling is (1, 4, 8, 8), eta 0.5"),
        (("--dpm_solver",), "Data shape for DPM-Solver sampling is (1, 4, 8, 8)"),
    ],
)
def test_each_sampler_says_its_name_and_the_steps_it_really_takes(script, options, line):
    code, out, _ = script("--n_iter", 1, "--n_samples", 1, "--skip_grid", "--skip_save", *options, steps=30)
    assert code == 0
    assert line.replace("with 30", "with 31") in out


def test_a_second_run_goes_on_counting_and_overwrites_nothing(script, tmp_path):
    script("--n_iter", 1, "--n_samples", 2)
    before = {name: (tmp_path / "out" / name).read_bytes() for name in written(tmp_path / "out")}
    (tmp_path / "out/samples/00000.png").unlink()
    script("--n_iter", 1, "--n_samples", 2, "--seed", 7)
    assert written(tmp_path / "out") == [
        "grid-0000.png", "grid-0001.png", *(f"samples/{i:05}.png" for i in (1, 2, 3))
    ]  # fmt: skip
    assert (tmp_path / "out/samples/00001.png").read_bytes() == before["samples/00001.png"]
    assert (tmp_path / "out/grid-0000.png").read_bytes() == before["grid-0000.png"]


@pytest.mark.parametrize(
    ("options", "files"),
    [
        (("--skip_grid",), ["samples/00000.png"]),
        (("--skip_save",), ["grid-0000.png"]),
        (("--skip_grid", "--skip_save"), []),
    ],
)
def test_what_is_to_be_skipped_is_not_written(script, tmp_path, options, files):
    code, out, _ = script("--n_iter", 1, "--n_samples", 1, *options)
    assert code == 0
    assert written(tmp_path / "out") == files
    assert out.endswith("Enjoy.\n")


def test_sizes_and_rows_are_as_asked(script, tmp_path):
    assert script("--H", 72, "--W", 96, "--n_iter", 1, "--n_samples", 2, "--n_rows", 1, "--scale", 1.0)[0] == 0
    assert [picture.shape for picture in samples(tmp_path / "out")] == [(72, 96, 3)] * 2
    assert read_picture(tmp_path / "out/grid-0000.png").shape == (2 * 74 + 2, 98 + 2, 3)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030"])
def test_a_file_of_prompts_is_painted_line_by_line_down_to_a_short_last_batch(script, tmp_path, encoding):
    prompts = tmp_path / "prompts"
    prompts.write_bytes("a cat\n\n# not painted\r\n一只猫在花园里玩白色的球\na dog\n".encode(encoding))
    code, out, _ = script("--from-file", prompts, "--n_samples", 2)
    assert code == 0
    assert f"reading prompts from {prompts}\n" in out
    assert "Data shape for DDIM sampling is (1, 4, 8, 8), eta 0.0" in out
    painted = [parse_infotext(read_parameters(tmp_path / "out/samples" / f"{i:05}.png")).prompt for i in range(6)]
    assert painted == ["a cat", "一只猫在花园里玩白色的球", "a dog"] * 2
    assert len(written(tmp_path / "out")) == 7


def test_each_picture_tells_how_it_was_made(script, tmp_path):
    script("--prompt", CAT, "--plms", "--n_samples", 1, "--seed", 7, "--negative-prompt", "blur, noise")
    read = parse_infotext(read_parameters(tmp_path / "out/samples/00001.png"))
    assert (read.prompt, read.negative_prompt) == (CAT, "blur, noise")
    digest = read.parameters["Model hash"]
    assert len(digest) == 10
    assert dict(read.parameters) == {
        "Steps": "2", "Sampler": "PLMS", "CFG scale": "7.5", "Seed": "7", "Size": "64x64", "Model hash": digest,
        "Model": "tiny", "Iteration": "1", "Batch size": "1", "Batch pos": "0", "RNG": "CompVis", "Version": "sdbatch",
    }  # fmt: skip
    assert read_parameters(tmp_path / "out/grid-0000.png").startswith(CAT)


@pytest.mark.parametrize(
    ("option", "value", "key"),
    [("--cache-interval", 2, "DeepCache interval"), ("--guidance-until", 0.5, "Guidance until")],
)
def test_a_shortcut_changes_the_picture_and_is_told(script, tmp_path, option, value, key):
    for options in ((), (option, value)):
        assert script("--n_iter", 1, "--n_samples", 1, *options, steps=4)[0] == 0
    plain, short = samples(tmp_path / "out")
    assert not same(plain, short)
    told = [parse_infotext(read_parameters(tmp_path / f"out/samples/0000{i}.png")).parameters.get(key) for i in (0, 1)]
    assert told == [None, str(value)]


def test_a_negative_prompt_changes_the_picture(script, tmp_path):
    script("--n_iter", 1, "--n_samples", 1)
    script("--n_iter", 1, "--n_samples", 1, "--negative-prompt", "a dog in the rain")
    plain, other = samples(tmp_path / "out")
    assert not same(plain, other)


@pytest.mark.slow  # importing transformers
def test_flagged_pictures_are_blackened_and_counted(script, tmp_path):
    weights = random_weights()
    weights["concept_embeds_weights"] = torch.full((17,), -2.0)
    checker = put_checker(tmp_path / "checker", weights)
    code, out, _ = script("--safety-checker", checker, "--n_iter", 1, "--n_samples", 2)
    assert code == 0
    assert "2 of 2 pictures were flagged by the safety checker and blackened\n" in out
    assert max(picture.max() for picture in samples(tmp_path / "out")) == 0
    assert parse_infotext(read_parameters(tmp_path / "out/samples/00000.png")).parameters["Safety"] == "flagged"


def test_every_option_of_the_original_has_its_default():
    assert vars(txt2img.build_parser().parse_args([])) == {
        "prompt": "a painting of a virus monster playing guitar", "outdir": "outputs/txt2img-samples",
        "skip_grid": False, "skip_save": False, "ddim_steps": 50, "plms": False, "dpm_solver": False,
        "laion400m": False, "fixed_code": False, "ddim_eta": 0.0, "n_iter": 2, "H": None, "W": None, "C": None,
        "f": None, "n_samples": 3, "n_rows": 0, "scale": None, "from_file": None, "config": None, "ckpt": None,
        "seed": 42, "precision": "autocast",
        "model": "sd-v1", "negative_prompt": "", "clip": None, "safety_checker": None, "device": "auto",
        "watermark": False, "use_ema": "auto", "by_lcm": False, "cache_interval": 1, "guidance_until": 1.0,
        "merge_tokens": 0.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("module", "options", "scale"),
    [
        (txt2img, [], 7.5),
        (img2img, ["--init-img"], 5.0),
        (txt2img, ["--model", "emoji-v1"], 3.0),
        (img2img, ["--init-img", "--model", "emoji-v1"], 3.0),
        (txt2img, ["--model", "emoji-v1", "--scale", "1"], 1.0),
    ],
)
def test_the_guidance_is_the_models_unless_it_is_typed(tiny_model, tmp_path, module, options, scale):
    Image.new("RGB", (64, 64)).save(tmp_path / "init.png")
    given = [
        word for option in options for word in ([option, f"{tmp_path}/init.png"] if "init" in option else [option])
    ]
    given += ["--config", str(tiny_model.config), "--ckpt", str(tiny_model.checkpoint), "--safety-checker", "off"]
    order = module.settle(module.build_parser().parse_args(given))
    assert order.template.sampler.guidance_scale == scale


def test_which_of_a_files_weights_were_taken_is_said(script):
    _, out, _ = script("--skip_save", "--skip_grid", "--n_iter", 1, "--n_samples", 1)
    assert "Took the plain weights\n" in out
    code, _, err = script("--use-ema", "yes")
    assert code == 2
    assert "has no whole set of averaged weights" in err


def test_the_older_model_has_a_folder_of_its_own_unless_another_is_typed(monkeypatch, tmp_path, tiny_model, capsys):
    monkeypatch.chdir(tmp_path)
    given = ["--laion400m", "--config", str(tiny_model.config), "--ckpt", str(tiny_model.checkpoint)]
    given += ["--safety-checker", "off"]
    parse = txt2img.build_parser().parse_args
    assert txt2img.settle(parse(given)).options.outdir == "outputs/txt2img-samples-laion400m"
    assert txt2img.settle(parse([*given, "--outdir", "mine"])).options.outdir == "mine"
    assert capsys.readouterr().out == "Falling back to LAION 400M model...\n" * 2


def test_help_comes_at_once_without_torch(tmp_path):
    program = (
        f"import runpy, sys; sys.argv = [{str(SCRIPT)!r}, '--help']\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit: print('heavy:', *({'torch', 'numpy', 'PIL', 'omegaconf'} & set(sys.modules)))"
    )
    out = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=tmp_path
    ).stdout
    assert out.endswith("heavy:\n")
    for group in ("the picture:", "sampling:", "what is written:", "the model:"):
        assert group in out


@pytest.mark.slow  # importing transformers
def test_a_checker_of_pictures_moves_none_of_the_draws(script, tmp_path):
    """It is read behind the first batch, and the library that builds it draws numbers."""
    weights = random_weights()
    weights["concept_embeds_weights"], weights["special_care_embeds_weights"] = torch.ones(17) * 2, torch.ones(3) * 2
    checker = put_checker(tmp_path / "checker", weights)
    made = []
    for which in (checker, "off"):
        code, *_ = script("--safety-checker", which, "--n_samples", 1, "--n_iter", 3, "--skip_grid")
        assert code == 0
        made.append(samples(tmp_path / "out"))
        shutil.rmtree(tmp_path / "out")
    assert all(np.array_equal(*pair) for pair in zip(*made))
    assert len(made[0]) == 3


@pytest.fixture
def half(monkeypatch):
    """A pipeline whose second picture overflows in the precision that it is in, and only in it: float64 for half."""
    pipeline = Pipeline(random_model().double())
    decode, decoded = pipeline.decode, []

    def overflow(latent):
        decoded.append(pipeline.model.dtype)
        if not pipeline.in_full_precision and len(decoded) == 2:
            raise GenerationError("the model gave NaN in float64")
        return decode(latent)

    monkeypatch.setattr(pipeline, "decode", overflow)
    monkeypatch.setattr(_paint, "load", lambda order: pipeline)
    return decoded


@pytest.mark.parametrize("options", [("--plms",), ("--ddim_eta", 0.5), ("--fixed_code",)])
def test_a_batch_with_a_picture_that_overflows_is_made_again_in_float32_and_the_next_are_as_ever(
    script, tmp_path, options, half
):
    """With the draws of the first try, so that neither it nor what comes behind it is another picture."""
    code, _, err = script("--n_samples", 2, "--n_iter", 2, "--skip_grid", *options)
    assert code == 0
    assert err.count("the model gave NaN in float64; trying float32\n") == 1
    assert half == [*2 * [torch.float64], *2 * [torch.float32], *2 * [torch.float64]]
    made = samples(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_paint, "load", lambda order: Pipeline(random_model()))
        script("--n_samples", 2, "--n_iter", 2, "--skip_grid", *options)
    expected = samples(tmp_path / "out")
    assert len(made) == len(expected) == 4
    assert all(same(*pair) for pair in zip(made, expected))


def test_a_picture_that_overflows_in_float32_too_ends_in_one_line_with_both_reasons(script, monkeypatch):
    pipeline = Pipeline(random_model().double())

    def overflow(latent):
        raise GenerationError(f"the model gave NaN in {pipeline.model.dtype}")

    monkeypatch.setattr(pipeline, "decode", overflow)
    monkeypatch.setattr(_paint, "load", lambda order: pipeline)
    code, _, err = script()
    assert code == GenerationError.exit_code
    said = "txt2img.py: error: the model gave NaN in torch.float64; in float32 too: the model gave NaN in torch.float32"
    assert err.splitlines()[-1].endswith(said)
    assert pipeline.model.dtype is torch.float64
