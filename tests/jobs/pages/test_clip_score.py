"""CLIP scores come from weights in a file, here of a tiny CLIP; nothing is fetched, and nothing in a file is run."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from jobs.pages.clip_score import load_score
from jobs.worker.rehearsal import generate
from jobs.worker.worker import Worker, run_shard
from ldm.errors import ConfigError, WeightsError
from ldm.inference.images import encode_png
from tests.jobs.support import jobs, prepare

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of random weights in OpenAI's layout, with its 49,408 words and 77 places."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package imports pkg_resources, which setuptools calls deprecated
        model = pytest.importorskip("clip.model").CLIP
    torch.manual_seed(3)
    tiny = model(
        embed_dim=16, image_resolution=32, vision_layers=1, vision_width=64, vision_patch_size=16, context_length=77,
        vocab_size=49408, transformer_width=64, transformer_heads=1, transformer_layers=1,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("clip") / "tiny.pt"
    torch.save(tiny.state_dict(), path)
    return path


def picture(seed: int) -> bytes:
    return encode_png(np.random.default_rng(seed).integers(0, 256, (48, 80, 3), dtype=np.uint8))


@pytest.mark.slow
def test_a_score_depends_on_picture_and_prompt_and_on_nothing_else(weights):
    score = load_score(weights, "cpu")
    scores = {(seed, prompt): score(picture(seed), prompt) for seed in (0, 1) for prompt in ("a cat", "猫" * 200, "")}
    assert all(0 <= value <= 100 for value in scores.values())
    assert scores[0, "a cat"] != scores[1, "a cat"] != scores[1, ""]
    again = load_score(weights, "cpu")
    assert {key: again(picture(key[0]), key[1]) for key in reversed(scores)} == scores


@pytest.mark.slow
def test_the_report_has_the_score_of_each_picture_and_their_mean(weights, tmp_path):
    prepared = prepare(tmp_path, count=2)
    run_shard(prepared.run.shard(0), prepared.run, generate, Worker("one", "fake", 2))
    done = jobs("report", str(prepared.run.path), "--clip-weights", str(weights), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    clip = json.loads((prepared.run.path / "report.json").read_text())["clip"]
    assert clip["weights"] == str(weights)
    assert set(clip["scores"]) == {"0", "1"}
    assert clip["mean"] == pytest.approx(sum(clip["scores"].values()) / 2, abs=1e-3)
    assert "CLIP score" in (prepared.run.path / "report.html").read_text()


@pytest.mark.slow
def test_weights_of_something_else_are_refused(weights, tmp_path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(WeightsError, match=r"other\.pt must hold the weights of a CLIP in OpenAI's layout"):
        load_score(tmp_path / "other.pt")
    with pytest.raises(WeightsError, match=r"no weights at .*missing\.pt"):
        load_score(tmp_path / "missing.pt")


@pytest.mark.slow
def test_a_program_is_not_run_and_it_is_said_how_to_take_its_weights_out(weights, tmp_path):
    path = tmp_path / "ViT-B-32.pt"
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # newer torch calls TorchScript deprecated; OpenAI's files are in it all the same
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), str(path))
    with pytest.raises(WeightsError, match=r"TorchScript program, which is not run here.*then give .*-weights\.pt"):
        load_score(path)


def test_without_the_package_it_is_said_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "clip", None)
    with pytest.raises(ConfigError, match=r"needs the package clip-anytorch.*pip install clip-anytorch"):
        load_score(tmp_path / "any.pt")
