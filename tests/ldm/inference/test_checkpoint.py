"""A model loaded from a file is the model that was saved, in every format and precision, or an error says why not."""

from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from ldm.errors import ConfigError, WeightsError
from ldm.inference import tensors
from ldm.inference.checkpoint import load_model, read_model_config, read_state_dict
from ldm.inference.names import SCHEDULE, ema_name
from tests.tiny import CONFIG, random_model

IDS = "cond_stage_model.transformer.text_model.embeddings.position_ids"


@pytest.fixture(scope="module")
def original():
    return random_model(seed=1)


def save(state, path, *, step=7):
    if path.suffix == ".safetensors":
        safetensors = pytest.importorskip("safetensors.torch")
        contiguous = {name: tensor.contiguous() for name, tensor in state.items()}
        safetensors.save_file(contiguous, str(path), metadata={"global_step": str(step)})
    else:
        wrapped = {"state_dict": state, "global_step": step}
        torch.save(wrapped, str(path), _use_new_zipfile_serialization=path.suffix == ".ckpt")
    return path


def assert_same(model, original, *, dtype=torch.float32, rounded_to=torch.float32):
    have, want = model.state_dict(), original.state_dict()
    assert have.keys() == want.keys()
    parameters = dict(original.named_parameters())
    for name, tensor in want.items():
        if name in parameters:
            tensor = tensor.to(rounded_to).to(dtype)
        assert have[name].dtype is tensor.dtype, name
        assert torch.equal(have[name], tensor), name


@pytest.mark.parametrize("file", ["model.ckpt", "model.safetensors", "model.old"])
def test_a_model_comes_back_from_every_format(tmp_path, original, file):
    path = save(original.state_dict(), tmp_path / file)
    model, report = load_model(CONFIG, path)
    assert_same(model, original)
    assert (report.file, report.global_step, report.uses_ema, report.schedule_from_file) == (path, 7, False, True)
    assert report.parameters == sum(parameter.numel() for parameter in original.parameters())


def test_a_loaded_model_gives_what_the_saved_one_gave(tmp_path, original):
    model, _ = load_model(CONFIG, save(original.state_dict(), tmp_path / "model.safetensors"))
    x, t = torch.randn(2, model.channels, 8, 8), torch.tensor([900, 3])
    width = original.cond_stage_model.transformer.text_model.final_layer_norm.weight.shape[0]
    text = torch.randn(2, 77, width)
    # The weights are the same to the bit; a kernel may order its sums by where in memory they lie.
    with torch.no_grad():
        assert torch.allclose(model.apply_model(x, t, text), original.apply_model(x, t, text), atol=1e-5)
        assert torch.allclose(model.decode_first_stage(x), original.decode_first_stage(x), atol=1e-5)


def test_a_loaded_model_is_frozen_and_wholly_in_memory(tmp_path, original):
    model, _ = load_model(CONFIG, save(original.state_dict(), tmp_path / "model.ckpt"))
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))


def test_loading_draws_no_random_number(tmp_path, original):
    path = save(original.state_dict(), tmp_path / "model.ckpt")
    torch.manual_seed(0)
    before = torch.get_rng_state()
    load_model(CONFIG, path)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("asked", [None, torch.bfloat16])
def test_weights_get_the_asked_precision_whatever_the_file_has_and_tables_stay_exact(tmp_path, original, stored, asked):
    state = {name: tensor.to(stored) for name, tensor in original.state_dict().items()}
    model, report = load_model(CONFIG, save(state, tmp_path / "model.ckpt"), dtype=asked, device=torch.device("cpu"))
    assert_same(model, original, dtype=asked or torch.float32, rounded_to=stored)
    assert report.schedule_from_file is (stored is torch.float64)


@pytest.mark.parametrize("on_network", [False, True])
def test_weights_that_are_to_be_left_stay_as_the_file_has_them_where_it_is_mapped(
    tmp_path, original, monkeypatch, on_network
):
    monkeypatch.setattr(tensors, "is_on_network", lambda path: on_network)
    state = {name: tensor.half() for name, tensor in original.state_dict().items()}
    path = save(state, tmp_path / "model.safetensors")
    model, _ = load_model(CONFIG, path, dtype=torch.bfloat16, leave=lambda layer: isinstance(layer, nn.Conv2d))
    for layer in model.modules():
        for name, parameter in layer._parameters.items():
            left = isinstance(layer, nn.Conv2d) and name == "weight" and not on_network
            assert parameter is None or parameter.dtype is (torch.float16 if left else torch.bfloat16)


def test_tables_that_the_file_lacks_are_computed(tmp_path, original):
    state = {name: tensor for name, tensor in original.state_dict().items() if name not in SCHEDULE | {IDS}}
    model, report = load_model(CONFIG, save(state, tmp_path / "model.safetensors"))
    assert_same(model, original)
    assert not report.schedule_from_file
    assert "noise schedule from the config" in str(report)


def test_a_schedule_in_the_file_wins_over_the_config(tmp_path, original):
    state = {name: tensor * 0.5 if name in SCHEDULE else tensor for name, tensor in original.state_dict().items()}
    model, _ = load_model(CONFIG, save(state, tmp_path / "model.ckpt"))
    assert torch.equal(model.betas, original.betas * 0.5)


def full_ema(original):
    state = original.state_dict()
    copies = {ema_name(name): tensor + 1 for name, tensor in state.items() if name.startswith("model.")}
    return {**state, **copies, "model_ema.decay": torch.tensor(0.9999)}


@pytest.mark.parametrize(("use_ema", "added"), [("auto", 1.0), ("yes", 1.0), ("no", 0.0)])
def test_averaged_weights_are_used_as_asked_and_said(tmp_path, original, use_ema, added):
    model, report = load_model(CONFIG, save(full_ema(original), tmp_path / "model.ckpt"), use_ema=use_ema)
    weight = "diffusion_model.out.2.bias"
    assert torch.equal(model.model.state_dict()[weight], original.model.state_dict()[weight] + added)
    assert torch.equal(model.first_stage_model.quant_conv.bias, original.first_stage_model.quant_conv.bias)
    said = "the averaged (EMA) weights" if added else "the plain weights, its averaged (EMA) ones not used"
    assert said in str(report)


def test_an_unknown_choice_of_averaged_weights_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="use_ema must be one of auto, yes, no, got 'maybe'"):
        load_model(CONFIG, tmp_path / "any.ckpt", use_ema="maybe")


def test_a_config_that_keeps_averaged_weights_builds_no_second_copy_of_the_network(tmp_path, original):
    config = OmegaConf.load(CONFIG)
    config.model.params.use_ema = True
    OmegaConf.save(config, tmp_path / "ema.yaml")
    model, _ = load_model(tmp_path / "ema.yaml", save(original.state_dict(), tmp_path / "model.ckpt"))
    assert_same(model, original)


def test_a_file_that_does_not_fit_is_refused_with_both_files_named(tmp_path, original):
    state = original.state_dict()
    state["stranger"] = state.pop("model.diffusion_model.out.2.bias")
    with pytest.raises(
        WeightsError, match=r"1 missing: model.diffusion_model.out.2.bias; 1 unexpected: stranger"
    ) as raised:
        load_model(CONFIG, save(state, tmp_path / "model.ckpt"))
    assert str(raised.value).startswith(f"{tmp_path / 'model.ckpt'} does not fit {CONFIG}")


def test_a_wrong_file_is_told_before_a_model_is_built(tmp_path, monkeypatch):
    (tmp_path / "model.ckpt").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    monkeypatch.setattr("ldm.inference.checkpoint.instantiate_from_config", None)
    with pytest.raises(WeightsError, match="is a Git LFS pointer"):
        load_model(CONFIG, tmp_path / "model.ckpt")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no config at .*: looked for /"),
        ("a: [1", "is no valid YAML: .*line 1"),
        ("", "must have the key 'model'"),
        ("- 1", "must have the key 'model'"),
        ("model: 3", "must have the key 'model'"),
        ("model: {params: {}}", "target must be the import path of a class"),
        ("model: {target: ldm.nothing.Model}", "target must be the import path of a class, got 'ldm.nothing.Model'"),
        (
            "model: {target: torch.nn.Linear, params: {in_features: 3, out_features: 4, biass: 1}}",
            "did you mean 'bias'",
        ),
        ("model: {target: torch.nn.Linear, params: {in_features: '${nothing}'}}", "is no valid YAML: .*nothing"),
        ("model: \x00", "is no valid YAML"),
    ],
)
def test_a_config_that_describes_no_model_is_refused_in_one_line(tmp_path, original, text, message):
    path = tmp_path / "config.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=message) as raised:
        load_model(path, save({"weight": torch.ones(4, 3)}, tmp_path / "model.ckpt"))
    assert "\n" not in str(raised.value)


def test_a_config_in_another_encoding_or_a_folder_is_refused(tmp_path):
    (tmp_path / "gbk.yaml").write_bytes("model: 模型".encode("gbk"))
    with pytest.raises(ConfigError, match="is no valid YAML"):
        read_model_config(tmp_path / "gbk.yaml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_model_config(tmp_path)


def test_any_network_that_a_config_names_can_be_loaded(tmp_path):
    layer = torch.nn.Linear(3, 4)
    (tmp_path / "config.yaml").write_text("model: {target: torch.nn.Linear, params: {in_features: 3, out_features: 4}}")
    model, _ = load_model(tmp_path / "config.yaml", save(layer.state_dict(), tmp_path / "layer.ckpt"))
    assert_same(model, layer)


@pytest.mark.parametrize("file", ["model.ckpt", "model.safetensors"])
def test_a_state_dict_is_read_as_it_is_stored(tmp_path, file):
    state = {"a": torch.arange(6.0).half().reshape(2, 3), "b": torch.tensor([1, 2])}
    found, metadata = read_state_dict(save(state, tmp_path / file, step=12))
    assert metadata == {"global_step": 12}
    assert {name: (tensor.dtype, tensor.tolist()) for name, tensor in found.items()} == {
        "a": (torch.float16, [[0, 1, 2], [3, 4, 5]]),
        "b": (torch.int64, [1, 2]),
    }
