"""The user's own command, from his own folders, on a machine that is cut off: no call leaves it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ldm.inference.images import read_picture
from tests.ldm.inference.test_safety import put_checker, random_weights
from tests.tiny import CONFIG, random_model

pytestmark = pytest.mark.slow  # torch and transformers are imported anew, and 300 steps taken

SCRIPT = Path(__file__).resolve().parents[2] / "scripts/txt2img.py"
CAT = "a photograph of a cat playing a white ball in a lovely garden"
REFUSE = """
import socket

def refuse(self, address, *rest):
    raise RuntimeError(f"a call would have left the machine, to {address}")

socket.socket.connect = socket.socket.connect_ex = socket.socket.sendto = refuse
socket.getaddrinfo = lambda *address, **rest: refuse(None, address)
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder laid out as the user's: a pickled checkpoint, the safety checker, and our config in the place of his."""
    home = tmp_path_factory.mktemp("LLM") / "stable-diffusion"
    config, checkpoint = home / "configs/stable-diffusion/v1-inference.yaml", home / "models/ldm/stable-diffusion-v1"
    config.parent.mkdir(parents=True)
    checkpoint.mkdir(parents=True)
    shutil.copy(CONFIG, config)
    torch.save({"state_dict": random_model().state_dict(), "global_step": 470000}, str(checkpoint / "model.ckpt"))
    weights = random_weights()
    weights["concept_embeds_weights"] = torch.full((17,), 2.0)  # no cosine reaches it, so no picture is flagged
    put_checker(home / "models/stable-diffusion-safety-checker", weights)
    return home


def cut_by_the_kernel(home):
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-n", "true"], check=False).returncode:
        pytest.skip("a network namespace of one's own is not permitted here")
    return ["unshare", "-n"], {}


def cut_in_python(home):
    refusing = home / "refusing"
    refusing.mkdir(exist_ok=True)
    (refusing / "sitecustomize.py").write_text(REFUSE)
    return [], {"PYTHONPATH": str(refusing)}


@pytest.mark.parametrize("cut", [cut_by_the_kernel, cut_in_python])
def test_the_users_command_paints_offline(home, cut, monkeypatch):
    prefix, environ = cut(home)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    outdir = f"outputs/{cut.__name__}"
    command = [sys.executable, str(SCRIPT), "--prompt", CAT, "--plms", f"--outdir={outdir}"]
    ended = subprocess.run([*prefix, *command], capture_output=True, text=True, cwd=home, check=False)
    assert ended.returncode == 0, ended.stderr
    for line in (
        "Global seed set to 42",
        "Loading model from models/ldm/stable-diffusion-v1/model.ckpt",
        "Global Step: 470000",
        "LatentDiffusion: Running in eps-prediction mode",
        "Data shape for PLMS sampling is (3, 4, 8, 8)",
        "Running PLMS Sampling with 50 timesteps",
    ):
        assert f"{line}\n" in ended.stdout
    end = f"Your samples are ready and waiting for you here: \n{outdir} \n \nEnjoy.\n"
    assert ended.stdout.endswith(end), "nothing was flagged, or else it would be said before"
    pictures = sorted((home / outdir / "samples").iterdir())
    assert [path.name for path in pictures] == [f"{i:05}.png" for i in range(6)]
    assert all(read_picture(path).shape == (64, 64, 3) for path in pictures)
    assert (home / outdir / "grid-0000.png").is_file()


def test_the_cut_in_python_does_cut(home):
    _, environ = cut_in_python(home)
    program = "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9/')"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environ, check=False)
    assert "a call would have left the machine" in ended.stderr
