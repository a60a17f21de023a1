"""Models are found by name from any working directory; what is missing is said with the places looked at."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ldm.errors import ConfigError, RequestError, WeightsError
from ldm.inference import models
from ldm.inference.models import EMOJI_V1, LAION_400M, SD_V1, ModelShape, entry_named, find_files, read_shape

YAML = """
model:
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    image_size: 16
    channels: 4
    first_stage_config:
      params:
        ddconfig: {ch_mult: [1, 1, 2], resolution: 32}
"""

SHAPE = (
    "model: {{params: {{channels: {channels}, image_size: [8, 8], "
    "first_stage_config: {{params: {{ddconfig: {{ch_mult: {ch_mult}, resolution: 32}}}}}}}}}}"
)


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """An empty project root, with the working directory elsewhere."""
    root, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    root.mkdir()
    elsewhere.mkdir()
    monkeypatch.setattr(models, "PROJECT_ROOT", root)
    monkeypatch.chdir(elsewhere)
    return root


def put(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(YAML)
    return path


def test_files_are_found_from_any_working_directory(project):
    config = put(project / SD_V1.config)
    checkpoint = put(project / "models/ldm/stable-diffusion-v1/model.ckpt")
    found = find_files(SD_V1)
    assert (found.name, found.config, found.checkpoint) == ("sd-v1", config, checkpoint)


def test_the_working_directory_comes_first_and_keeps_the_name_as_it_was_typed(project):
    put(project / SD_V1.config)
    put(project / "models/ldm/stable-diffusion-v1/model.ckpt")
    put(Path("models/ldm/stable-diffusion-v1/model.ckpt"))
    assert find_files(SD_V1).checkpoint == Path("models/ldm/stable-diffusion-v1/model.ckpt")


def test_safetensors_come_before_a_pickle_and_the_downloaded_folder_serves_too(project):
    put(project / SD_V1.config)
    downloaded = put(project / "models/stable-diffusion-v-1-4-original/sd-v1-4.ckpt")
    assert find_files(SD_V1).checkpoint == downloaded
    put(project / "models/ldm/stable-diffusion-v1/model.ckpt")
    safe = put(project / "models/ldm/stable-diffusion-v1/model.safetensors")
    assert find_files(SD_V1).checkpoint == safe


def test_a_checkpoint_of_ones_own_names_the_model(project):
    put(project / SD_V1.config)
    put(Path("mine/anime.v3.ckpt"))
    assert find_files(SD_V1, checkpoint="mine/anime.v3.ckpt").name == "anime.v3"


def test_missing_weights_say_where_they_were_looked_for_and_name_the_shipped_model(project):
    put(project / SD_V1.config)
    with pytest.raises(WeightsError) as raised:
        find_files(SD_V1)
    message = str(raised.value)
    assert "models/ldm/stable-diffusion-v1/model.ckpt" in message
    assert "models/ldm/stable-diffusion-v1/model.safetensors" in message
    assert str(project) in message
    assert str(Path.cwd()) in message
    assert "--ckpt FILE" in message
    assert "--model emoji-v1" in message
    assert "\n" not in message


def test_a_missing_checkpoint_that_was_asked_for_is_the_only_one_looked_for(project):
    put(project / SD_V1.config)
    put(project / "models/ldm/stable-diffusion-v1/model.ckpt")
    with pytest.raises(WeightsError, match=r"looked for other\.ckpt in "):
        find_files(SD_V1, checkpoint="other.ckpt")


def test_missing_weights_of_the_shipped_model_are_fetched_from_git(project):
    put(project / EMOJI_V1.config)
    with pytest.raises(WeightsError, match="git checkout models/emoji-v1, or name others with --ckpt FILE"):
        find_files(EMOJI_V1)


def test_a_missing_config_is_said_before_the_weights(project):
    with pytest.raises(
        ConfigError, match=r"no config of laion400m: looked for .*txt2img-1p4B-eval\.yaml in .*--config"
    ):
        find_files(LAION_400M)


def test_an_unknown_name_lists_the_known_ones():
    assert entry_named("emoji-v1") is EMOJI_V1
    with pytest.raises(RequestError, match="model must be one of sd-v1, emoji-v1, got 'sdxl'"):
        entry_named("sdxl")


def test_sizes_are_read_from_the_config(project):
    shape = read_shape(put(project / "tiny.yaml"))
    assert shape == ModelShape(channels=4, factor=4, size=64, first_stage_size=32)
    assert shape.size_multiple == 8
    assert ModelShape(channels=4, factor=16, size=512, first_stage_size=256).size_multiple == 16


def test_a_square_size_may_be_written_as_two_numbers(tmp_path):
    path = tmp_path / "square.yaml"
    path.write_text(SHAPE.format(channels="4", ch_mult="[1, 2]"))
    assert read_shape(path).size == 16


def test_a_place_that_cannot_be_looked_at_is_said(project):
    with pytest.raises(WeightsError, match=r"cannot look at a+: File name too long"):
        find_files(EMOJI_V1, config=str(put(project / "tiny.yaml")), checkpoint="a" * 300)
    with pytest.raises(WeightsError, match="looked for ~nobody-of-that-name/a"):
        find_files(EMOJI_V1, config=str(project / "tiny.yaml"), checkpoint="~nobody-of-that-name/a.ckpt")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {params: {channels: 4}}", "must have the key 'first_stage_config' of first_stage_config.params"),
        ("just words", "must have the key 'model' of model.params"),
        ("[1, 2]", "must have the key 'model' of model.params"),
        ("model: ${nowhere}", "must be a YAML file: "),
        (SHAPE.format(channels="four", ch_mult="[1]"), "channels must be a whole number above 0, got 'four'"),
        (SHAPE.format(channels="0", ch_mult="[1]"), "channels must be a whole number above 0, got 0"),
        (SHAPE.format(channels="4", ch_mult="4"), "ch_mult must be a list, got 4"),
        ("model: [1, 2", "must be a YAML file: "),
        ("\udcff", "must be a YAML file: "),
    ],
)
def test_a_config_that_is_none_is_said_in_one_line(tmp_path, text, message):
    path = tmp_path / "broken.yaml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError) as raised:
        read_shape(path)
    assert message in str(raised.value)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_models_are_known_without_torch():
    program = "import sys, ldm.inference.models, ldm.inference.infotext; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
