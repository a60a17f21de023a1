"""The safety checker: the decisions of diffusers' on the same weights, and what becomes of a flagged picture."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.errors import WeightsError
from ldm.inference.runtime import pick_device
from ldm.inference.safety import SafetyChecker, SafetyPolicy, apply, decide, preprocess, read_preprocessing

ROOT = Path(__file__).resolve().parents[3]
SIZES = [(64, 64), (224, 224), (256, 256), (300, 200), (200, 301), (64, 320), (225, 224)]
PREPROCESSING = {
    "crop_size": 224, "do_center_crop": True, "do_convert_rgb": True, "do_normalize": True, "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor", "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711], "resample": 3, "size": 224,
}  # fmt: skip
VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 224,
    "patch_size": 32,
}  # fmt: skip
EMBED = 128


def pictures(count: int, seed: int = 0) -> list:
    """Smooth coloured noise of several sizes: unlike each other, and unlike plain noise to a vision tower."""
    draw = np.random.default_rng(seed)
    made = []
    for number in range(count):
        height, width = SIZES[number % len(SIZES)]
        coarse = draw.integers(0, 256, (draw.integers(2, 6), draw.integers(2, 6), 3))
        rows, columns = -(-height // coarse.shape[0]), -(-width // coarse.shape[1])
        fine = np.kron(coarse, np.ones((rows, columns, 1)))[:height, :width]
        made.append(np.clip(fine + draw.normal(0, 20, fine.shape), 0, 255).astype(np.uint8))
    return made


def random_weights(prefix: str = "vision_model.vision_model.") -> dict:
    """The tensors of a tiny checker, named as in the published file, without thresholds."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(3)
    tower = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**VISION))
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    weights = {prefix + name.replace("vision_model.", "", 1): value for name, value in tower.state_dict().items()}
    weights["visual_projection.weight"] = torch.randn(EMBED, VISION["hidden_size"])
    weights["concept_embeds"] = torch.randn(17, EMBED)
    weights["special_care_embeds"] = torch.randn(3, EMBED)
    weights["concept_embeds_weights"] = torch.zeros(17)
    weights["special_care_embeds_weights"] = torch.zeros(3)
    return weights


def put_checker(folder, weights, name="pytorch_model.bin"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSING))
    (folder / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": VISION}))
    if name.endswith(".bin"):
        torch.save(weights, str(folder / name))
    else:
        from safetensors.torch import save_file

        save_file({key: value.contiguous() for key, value in weights.items()}, str(folder / name))
    return folder


def scores(checker, images):
    """What the network gives before it is decided, with thresholds of zero: cosines."""
    batch = torch.from_numpy(np.stack([preprocess(pixels, checker._preprocessing) for pixels in images]))
    return checker._network(batch)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Thresholds near the median of each concept's cosine, raised until some pictures pass and some do not."""
    plain = random_weights()
    special_care, concepts = scores(
        SafetyChecker.load(put_checker(tmp_path_factory.mktemp("plain"), plain)), pictures(80)
    )
    plain["special_care_embeds_weights"] = torch.quantile(special_care, 0.8, dim=0)
    plain["concept_embeds_weights"] = torch.quantile(concepts, 0.95, dim=0)
    return plain


@pytest.fixture(scope="module")
def folder(weights, tmp_path_factory):
    return put_checker(tmp_path_factory.mktemp("checker"), weights)


@pytest.fixture(scope="module")
def reference(weights):
    """diffusers' own, with the same weights."""
    pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

    text = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = transformers.CLIPConfig(vision_config=VISION, text_config=text, projection_dim=EMBED)
    model = StableDiffusionSafetyChecker(config).eval()
    one_level = not any(name.startswith("vision_model.vision_model.") for name in model.state_dict())
    named = {name.replace("vision_model.", "", 1) if one_level else name: value for name, value in weights.items()}
    missing, unexpected = model.load_state_dict(named, strict=False)
    assert not missing
    assert all(name.endswith("position_ids") for name in unexpected)
    return model


def test_decisions_are_those_of_diffusers(folder, reference):
    checker, images = SafetyChecker.load(folder), pictures(105, seed=1)
    clip_input = torch.from_numpy(np.stack([preprocess(pixels, checker._preprocessing) for pixels in images]))
    with torch.no_grad():
        _, expected = reference(images=[np.zeros((8, 8, 3)) for _ in images], clip_input=clip_input)
    flagged = checker.check(images)
    assert flagged == [bool(value) for value in expected]
    assert 10 < sum(flagged) < 95


def test_a_concept_of_special_care_decides_some_of_these_pictures(folder):
    """Otherwise the test above would not see its adjustment."""
    special_care, concepts = (
        value.double().numpy() for value in scores(SafetyChecker.load(folder), pictures(105, seed=1))
    )
    assert decide(special_care, concepts) != decide(np.full_like(special_care, -1.0), concepts)


def test_pixels_are_prepared_as_transformers_does(folder):
    """By its Pillow processor, whose name changed over the versions: floats differ by rounding alone.

    CLIPFeatureExtractor takes an odd margin's spare pixel from the other end, so those pictures are left out with it.
    """
    transformers = pytest.importorskip("transformers")
    names = ("CLIPImageProcessorPil", "CLIPImageProcessor", "CLIPFeatureExtractor")
    name = next(name for name in names if hasattr(transformers, name))
    processor = getattr(transformers, name).from_pretrained(str(folder))
    how = read_preprocessing(folder / "preprocessor_config.json")
    for pixels in pictures(14):
        if name == "CLIPFeatureExtractor" and int(224 * max(pixels.shape[:2]) / min(pixels.shape[:2])) % 2:
            continue
        expected = np.asarray(processor(images=Image.fromarray(pixels), return_tensors="np")["pixel_values"][0])
        np.testing.assert_allclose(preprocess(pixels, how), expected, atol=2e-6, rtol=0)


def test_both_layouts_of_preprocessor_config_mean_the_same(folder, tmp_path):
    values = dict(PREPROCESSING, size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224})
    values.update(do_rescale=True, rescale_factor=0.00392156862745098, image_processor_type="CLIPImageProcessor")
    (tmp_path / "new.json").write_text(json.dumps(values))
    assert read_preprocessing(tmp_path / "new.json") == read_preprocessing(folder / "preprocessor_config.json")


@pytest.mark.parametrize(
    ("prefix", "name"),
    [
        ("vision_model.vision_model.", "model.safetensors"),
        ("vision_model.", "model.safetensors"),
        ("vision_model.", "pytorch_model.bin"),
    ],
)
def test_every_published_layout_gives_the_same_decisions(weights, folder, tmp_path, prefix, name):
    renamed = {key.replace("vision_model.vision_model.", prefix): value for key, value in weights.items()}
    renamed[f"{prefix}embeddings.position_ids"] = torch.arange(50).unsqueeze(0)
    images = pictures(40, seed=2)
    assert SafetyChecker.load(put_checker(tmp_path, renamed, name)).check(images) == SafetyChecker.load(folder).check(
        images
    )


def test_half_precision_weights_are_widened(weights, tmp_path):
    half = {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
    checker = SafetyChecker.load(put_checker(tmp_path, half))
    assert {value.dtype for value in checker._network.state_dict().values() if value.is_floating_point()} == {
        torch.float32
    }
    assert len(checker.check(pictures(3))) == 3


def test_a_picture_is_judged_alone(folder):
    checker, images = SafetyChecker.load(folder), pictures(21, seed=4)
    assert checker.check(images) == [checker.check([pixels])[0] for pixels in images]
    assert checker.check([]) == []


def test_decisions_do_not_depend_on_the_context_they_are_made_in(folder):
    images = pictures(40, seed=5)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        checker = SafetyChecker.load(folder)
        inside = checker.check(images)
    assert inside == checker.check(images) == SafetyChecker.load(folder).check(images)


@pytest.mark.gpu
def test_decisions_on_a_card_are_those_on_the_cpu(folder):
    images = pictures(50, seed=6)
    assert SafetyChecker.load(folder, pick_device("gpu")).check(images) == SafetyChecker.load(folder).check(images)


def test_loading_leaves_the_initialisers_of_transformers_as_they_were(folder):
    """In a fresh interpreter, where loading is what imports transformers.

    Its embeddings begin at a deviation of 0.02. Imported while initialisers are idle, transformers 5 would leave them
    at torch's 1.0 for as long as the process lives.
    """
    code = (
        "import sys; from pathlib import Path; from ldm.inference.safety import SafetyChecker; "
        "imported = 'transformers' in sys.modules; SafetyChecker.load(Path(sys.argv[1])); "
        "from transformers import CLIPVisionConfig, CLIPVisionModel; "
        f"values = CLIPVisionModel(CLIPVisionConfig(**{VISION!r})).state_dict(); "
        "positions = next(v for name, v in values.items() if name.endswith('position_embedding.weight')); "
        "print(imported, round(float(positions.std()), 2))"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, str(folder)]
    done = subprocess.run(command, cwd=str(ROOT), capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "0.02"]


def test_weights_that_give_no_number_do_not_pass_pictures(weights, tmp_path):
    broken = dict(weights, concept_embeds=torch.full_like(weights["concept_embeds"], float("nan")))
    checker = SafetyChecker.load(put_checker(tmp_path, broken))
    with pytest.raises(WeightsError, match="give NaN; fetch them again"):
        checker.check(pictures(1))


@pytest.mark.parametrize(
    ("special_care", "concept", "flagged"),
    [
        (-1.0, 0.0, False),
        (-1.0, 0.0004, False),
        (-1.0, 0.0006, True),
        (-1.0, -0.009, False),
        (0.0004, -0.009, False),
        (0.002, -0.009, True),
        (0.002, -0.01, False),
        (1.0, -1.0, False),
    ],
)
def test_scores_are_rounded_and_special_care_lowers_the_thresholds(special_care, concept, flagged):
    assert decide(np.array([[special_care, -1.0]]), np.array([[-1.0, concept]])) == [flagged]


def test_what_is_kept_dropped_blackened_or_blurred():
    pixels = pictures(3)[2]
    assert apply(SafetyPolicy.KEEP, pixels, flagged=True) is pixels
    assert apply(SafetyPolicy.OFF, pixels, flagged=True) is pixels
    assert apply(SafetyPolicy.DROP, pixels, flagged=True) is None
    black = apply(SafetyPolicy.BLACK, pixels, flagged=True)
    assert black.shape == pixels.shape
    assert not black.any()


def test_a_blurred_picture_keeps_its_size_and_colour_and_nothing_fine():
    pixels = np.zeros((512, 512, 3), dtype=np.uint8)
    pixels[:, 16::32] = 255
    blurred = apply(SafetyPolicy.BLUR, pixels, flagged=True)
    assert blurred.shape == pixels.shape
    assert blurred.dtype == np.uint8
    # Away from the border, where the filter repeats the last column: stripes of 32 px are gone but for a few levels.
    assert blurred[:, 128:384].std() < 3
    assert abs(float(blurred[:, 128:384].mean()) - float(pixels.mean())) < 3


@pytest.mark.parametrize("policy", list(SafetyPolicy))
def test_a_picture_that_is_not_flagged_is_left_alone(policy):
    pixels = pictures(1)[0]
    assert apply(policy, pixels, flagged=False) is pixels


def test_what_is_missing_is_listed_at_once(tmp_path):
    with pytest.raises(WeightsError) as caught:
        SafetyChecker.load(tmp_path / "absent")
    message = str(caught.value)
    assert str(tmp_path / "absent") in message
    assert "not there: config.json, preprocessor_config.json, model.safetensors or pytorch_model.bin;" in message
    assert "--safety-checker FOLDER" in message


def test_weights_are_read_from_the_file_that_holds_some(weights, folder, tmp_path):
    put_checker(tmp_path, weights)
    (tmp_path / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\nsize 1216061799\n")
    images = pictures(8)
    assert SafetyChecker.load(tmp_path).check(images) == SafetyChecker.load(folder).check(images)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("visual_projection.weight"), r"does not fit .*: 1 missing: visual_projection\.weight; "),
        (lambda w: w.update(extra=torch.zeros(1)), "does not fit .*: 1 unexpected: extra; "),
        (lambda w: w.update(concept_embeds_weights=torch.zeros(5)), "1 of another shape: concept_embeds_weights; "),
        (lambda w: w.pop("concept_embeds"), "holds no tables concept_embeds and special_care_embeds"),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights, tmp_path, change, message):
    changed = dict(weights)
    change(changed)
    with pytest.raises(WeightsError, match=message):
        SafetyChecker.load(put_checker(tmp_path, changed))


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(folder, tmp_path):
    class Malicious:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    shutil.copytree(str(folder), str(tmp_path / "bad"))
    torch.save({"concept_embeds": Malicious()}, str(tmp_path / "bad/pytorch_model.bin"))
    with pytest.raises(WeightsError, match=r"may be malicious"):
        SafetyChecker.load(tmp_path / "bad")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.json", "<html>", "cannot be read as JSON"),
        ("config.json", "[]", "must hold a JSON object, found list"),
        ("config.json", '{"model_type": "clip"}', "must have 'vision_config' of a CLIP model, found model_type"),
        ("preprocessor_config.json", "{}", "does not describe CLIP's preprocessing"),
        (
            "preprocessor_config.json",
            '{"do_resize": false}',
            "must describe CLIP's preprocessing, found do_resize false",
        ),
    ],
)
def test_a_config_that_says_something_else_is_refused(folder, tmp_path, name, text, message):
    shutil.copytree(str(folder), str(tmp_path / "bad"))
    (tmp_path / "bad" / name).write_text(text)
    with pytest.raises(WeightsError, match=message):
        SafetyChecker.load(tmp_path / "bad")
