"""Both stages trained for a few steps each by the real command: what must come out, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, Tuple

import pytest
import torch

pytest.importorskip("pytorch_lightning", reason="training is an extra: pip install -e .[train]")

from omegaconf import OmegaConf
from PIL import Image

from ldm.errors import ConfigError, OutputError
from ldm.inference.checkpoint import load_model
from ldm.models.diffusion.ddpm import SCHEDULE_BUFFERS
from ldm.training.autoencoder import random_crop
from ldm.training.diffusion import min_snr_weight, spread_t
from ldm.training.run import check_scale_factor, prepare
from ldm.training.spec import Stage, read_spec

ROOT = Path(__file__).resolve().parents[3]
AUTOENCODER = ROOT / "configs/emoji/train-autoencoder.yaml"
DIFFUSION = ROOT / "configs/emoji/train-diffusion.yaml"
FEW = ("max_steps=4", "max_minutes=null", "batch_size=2", "grid_every=2", "checkpoint_every=2", "precision=full")


def run_train(*arguments: object) -> Tuple[int, str]:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts/train.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def first_stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    outdir = tmp_path_factory.mktemp("train") / "autoencoder"
    status, text = run_train(AUTOENCODER, f"outdir={outdir}", *FEW)
    assert status == 0, text
    return outdir


def steps_in(checkpoint: Path) -> int:
    state = torch.load(checkpoint, map_location="cpu", **WHOLE_FILE)
    return int(state["state_dict"]["steps_done"])


def size_of(picture: Path) -> Tuple[int, int]:
    with Image.open(picture) as opened:
        return opened.size


# Our own training run wrote it a moment ago: optimizer state and all.
WHOLE_FILE: Any = {"weights_only": False} if "weights_only" in torch.load.__code__.co_varnames else {}


@pytest.mark.slow
def test_a_run_leaves_a_checkpoint_its_spec_and_grids(first_stage: Path) -> None:
    assert steps_in(first_stage / "last.ckpt") == 4
    assert OmegaConf.load(first_stage / "train.yaml").batch_size == 2
    assert size_of(first_stage / "grids/000004.png") == (10 * 64, 2 * 64)


@pytest.mark.slow
def test_a_stopped_run_goes_on_and_a_finished_one_is_not_overwritten(first_stage: Path) -> None:
    status, text = run_train(AUTOENCODER, f"outdir={first_stage}", *FEW)
    assert (status, "go on with --resume" in text) == (2, True)
    status, text = run_train(AUTOENCODER, f"outdir={first_stage}", *FEW, "max_steps=6", "--resume")
    assert status == 0, text
    assert steps_in(first_stage / "last.ckpt") == 6


@pytest.mark.slow
def test_the_diffusion_trains_on_the_first_stage_and_leaves_a_model_that_loads(
    first_stage: Path, tmp_path: Path
) -> None:
    model = OmegaConf.load(ROOT / "configs/emoji/v1.yaml")
    options = (f"first_stage={first_stage / 'last.ckpt'}", f"outdir={tmp_path / 'run'}", "cached_pictures=8", *FEW)
    status, text = run_train(DIFFUSION, *options)
    assert (status, "scale_factor must be 1 / (deviation of the latents)" in text) == (2, True)
    # The message names the right factor: a user writes it into the config and starts again.
    model.model.params.scale_factor = float(text.split("latents) = ")[1].split(",")[0])
    OmegaConf.save(model, tmp_path / "v1.yaml")
    status, text = run_train(DIFFUSION, *options, f"model={tmp_path / 'v1.yaml'}", "--resume")
    assert (status, "resume from" in text) == (2, True)
    status, text = run_train(DIFFUSION, *options, f"model={tmp_path / 'v1.yaml'}")
    assert status == 0, text
    assert size_of(tmp_path / "run/grids/000004.png") == (10 * 64, 64)
    loaded, _ = load_model(tmp_path / "v1.yaml", tmp_path / "run/model.safetensors")
    assert loaded.alphas_cumprod.dtype is torch.float32
    assert set(SCHEDULE_BUFFERS) <= set(loaded.state_dict())


@pytest.mark.parametrize(
    ("override", "message"),
    [("batch=3", "batch"), ("batch_size=many", "many"), ("stage=text", "text"), ("resume", "must read key=value")],
)
def test_a_wrong_override_is_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_spec(AUTOENCODER, [override])


def test_overrides_replace_values() -> None:
    spec = read_spec(AUTOENCODER, ["batch_size=3", "loss.kl_weight=0.5"])
    assert (spec.stage, spec.batch_size, spec.loss.kl_weight) == (Stage.autoencoder, 3, 0.5)


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    spec = read_spec(AUTOENCODER, [f"outdir={tmp_path}/file/run"])
    with pytest.raises(OutputError, match=r"cannot make the folder .*/file/run: .*; choose another outdir="):
        prepare(spec, resume=False)


@pytest.mark.parametrize("text", ["stage: [1", "\udcff", "[1, 2]"])
def test_a_config_that_is_no_yaml_of_ours_is_said_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "broken.yaml").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError) as raised:
        read_spec(tmp_path / "broken.yaml", [])
    assert str(raised.value).startswith(f"{tmp_path}/broken.yaml: ")
    assert "\n" not in str(raised.value)


def test_a_missing_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="found none at"):
        read_spec(tmp_path / "absent.yaml", [])


def test_a_scale_factor_that_fits_is_accepted() -> None:
    check_scale_factor(0.5, 2.05, "v1.yaml")
    with pytest.raises(ConfigError, match=r"= 0\.4000, got 0\.5"):
        check_scale_factor(0.5, 2.5, "v1.yaml")


def test_timesteps_of_a_batch_cover_the_whole_schedule() -> None:
    t = spread_t(50, 1000)
    assert (torch.div(t, 20, rounding_mode="floor") == torch.arange(50)).all()


def test_clean_steps_weigh_less_than_noisy_ones() -> None:
    weights = min_snr_weight(torch.tensor([0.999, 0.9, 0.5, 0.01]), gamma=5.0)
    assert torch.equal(weights, weights.sort().values)
    assert weights[2] == weights[3] == 1.0


def test_a_crop_is_a_part_of_the_picture_on_the_grid_of_latents() -> None:
    image = torch.arange(64.0 * 64).reshape(1, 1, 64, 64)
    for _ in range(20):
        crop = random_crop(image, 32, 8)
        top, left = divmod(int(crop[0, 0, 0, 0]), 64)
        assert (top % 8, left % 8) == (0, 0)
        assert torch.equal(crop, image[:, :, top : top + 32, left : left + 32])
