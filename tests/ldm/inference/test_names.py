"""The names of SD v1 files, and what tools and years have made of them, fit the model; nothing else does."""

from __future__ import annotations

from pathlib import Path

import pytest

from ldm.errors import WeightsError
from ldm.inference.contents import Contents, StoredTensor
from ldm.inference.names import SCHEDULE, UseEma, ema_name, match_names
from ldm.inference.weightfile import WeightFormat

KEYS = Path(__file__).parents[2] / "golden" / "sd_v1_keys.tsv"
TEXT = "cond_stage_model.transformer."
IDS = f"{TEXT}text_model.embeddings.position_ids"


def sd_v1():
    """Names and shapes of the tensors in an SD v1 checkpoint, which are also those of the model."""
    lines = [line.split("\t") for line in KEYS.read_text(encoding="ascii").splitlines()]
    return {name: tuple(int(size) for size in shape.split(",") if size) for name, shape in lines}


WANTED = sd_v1()


def stored(shape, dtype="float32"):
    stride = [1] * len(shape)
    for axis in reversed(range(len(shape) - 1)):
        stride[axis] = stride[axis + 1] * shape[axis + 1]
    return StoredTensor(dtype, tuple(shape), tuple(stride), 0)


def match(have, *, use_ema=UseEma.AUTO, dtypes=None):
    tensors = {name: stored(shape, (dtypes or {}).get(name, "float32")) for name, shape in have.items()}
    contents = Contents(Path("model.ckpt"), WeightFormat.ZIP, tensors, None)
    return match_names(WANTED, contents, use_ema=use_ema, config="v1.yaml")


def with_ema(have):
    copies = {ema_name(name): shape for name, shape in have.items() if name.startswith("model.")}
    return {**have, **copies, "model_ema.decay": (), "model_ema.num_updates": ()}


def test_an_sd_v1_file_fills_every_name_but_the_positions():
    found = match(WANTED)
    assert len(WANTED) == 1143
    assert found.tensors.keys() == WANTED.keys() - {IDS}
    assert (found.has_ema, found.uses_ema, found.schedule_from_file, found.left_aside) == (False, False, True, 1)


def test_the_positions_may_be_there_in_any_dtype_or_not_at_all():
    without = {name: shape for name, shape in WANTED.items() if name != IDS}
    assert match(without).tensors == match(WANTED, dtypes={IDS: "float16"}).tensors == match(WANTED).tensors


def test_a_schedule_that_is_absent_or_rounded_to_half_precision_is_computed():
    absent = match({name: shape for name, shape in WANTED.items() if name not in SCHEDULE})
    rounded = match(WANTED, dtypes=dict.fromkeys(SCHEDULE, "float16"))
    partial = match({name: shape for name, shape in WANTED.items() if name != "posterior_variance"})
    for found in (absent, rounded, partial):
        assert not found.schedule_from_file
        assert not SCHEDULE & found.tensors.keys()
        assert found.tensors.keys() == WANTED.keys() - SCHEDULE - {IDS}


def test_text_encoder_names_of_transformers_5_are_understood():
    renamed = {name.replace(f"{TEXT}text_model.", TEXT): shape for name, shape in WANTED.items()}
    assert renamed.keys() != WANTED.keys()
    assert match(renamed).tensors.keys() == match(WANTED).tensors.keys()


def test_a_file_whose_names_all_begin_with_state_dict_is_understood():
    assert match({f"state_dict.{name}": shape for name, shape in WANTED.items()}).tensors == match(WANTED).tensors


def test_what_training_leaves_is_put_aside():
    extra = {
        "lvlb_weights": (1000,),
        "logvar": (1000,),
        "first_stage_model.loss.logvar": (),
        "first_stage_model.loss.discriminator.main.0.weight": (64, 3, 4, 4),
        "cond_stage_model.logit_scale": (),
        "cond_stage_model.text_projection": (768, 768),
        "cond_stage_model.transformer.text_projection.weight": (768, 768),
        "model_ema.decay": (),
    }
    found = match({**WANTED, **extra})
    assert found.tensors == match(WANTED).tensors
    assert found.left_aside == len(extra) + 1


@pytest.mark.parametrize(
    ("use_ema", "uses"), [(UseEma.AUTO, True), (UseEma.YES, True), (UseEma.NO, False)], ids=lambda value: str(value)
)
def test_averaged_weights_are_taken_unless_refused(use_ema, uses):
    have = with_ema(WANTED)
    found = match(have, use_ema=use_ema)
    assert (found.has_ema, found.uses_ema) == (True, uses)
    # The dtype tells which copy was taken.
    copies = dict.fromkeys((ema_name(name) for name in WANTED if name.startswith("model.")), "float16")
    taken = match(have, use_ema=use_ema, dtypes=copies).tensors
    assert all((place.dtype == "float16") == (uses and name.startswith("model.")) for name, place in taken.items())


def test_the_averaged_copy_of_a_tensor_is_named_without_dots():
    name = "model.diffusion_model.input_blocks.0.0.weight"
    assert ema_name(name) == "model_ema.diffusion_modelinput_blocks00weight"


def test_a_file_with_averaged_weights_alone_is_enough():
    have = {name: shape for name, shape in with_ema(WANTED).items() if not name.startswith("model.")}
    assert match(have).uses_ema


def test_an_incomplete_set_of_averaged_weights_is_not_taken():
    have = with_ema(WANTED)
    del have["model_ema.diffusion_modelout2bias"]
    found = match(have)
    assert (found.has_ema, found.uses_ema) == (True, False)
    with pytest.raises(WeightsError, match="has no whole set of averaged weights"):
        match(have, use_ema=UseEma.YES)


def test_all_that_does_not_fit_is_listed_in_one_error_up_to_eight_of_each():
    have = dict(WANTED)
    for index in range(11):
        have[f"stranger.{index:02}"] = (1,)
    gone = sorted(name for name in have if name.startswith("first_stage_model.decoder"))[:20]
    for name in gone:
        del have[name]
    have["model.diffusion_model.input_blocks.0.0.weight"] = (320, 9, 3, 3)
    have["model.diffusion_model.out.2.bias"] = ()
    with pytest.raises(WeightsError) as raised:
        match(have)
    assert str(raised.value) == (
        f"model.ckpt does not fit v1.yaml: 20 missing: {', '.join(gone[:8])} and 12 more; "
        f"11 unexpected: {', '.join(f'stranger.0{index}' for index in range(8))} and 3 more; "
        "2 of another shape: model.diffusion_model.input_blocks.0.0.weight (320x9x3x3, the model has 320x4x3x3), "
        "model.diffusion_model.out.2.bias (a number, the model has 4); give the config that it was trained with"
    )


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("conditioner.embedders.0.transformer.text_model.final_layer_norm.bias", "Stable Diffusion XL"),
        ("cond_stage_model.model.ln_final.bias", "Stable Diffusion 2"),
        ("lora_unet_down_blocks_0.alpha", "a LoRA"),
        ("down_blocks.0.resnets.0.conv1.bias", "one part of a diffusers folder"),
    ],
)
def test_another_kind_of_model_is_known_by_its_names(name, model):
    with pytest.raises(WeightsError, match=f"by its names it is {model}"):
        match({name: (1,)})


def test_a_tensor_under_two_names_is_refused():
    short, whole = (f"{TEXT}{name}" for name in ("final_layer_norm.bias", "text_model.final_layer_norm.bias"))
    for tensors in ({**WANTED, short: (768,)}, {f"state_dict.{short}": (768,), short: (768,)}):
        with pytest.raises(WeightsError, match=f"some tensors under two names, among them {whole}"):
            match(tensors)


def test_a_name_cannot_break_the_line_of_an_error():
    with pytest.raises(WeightsError, match=r"1 unexpected: a\?\?\[2Jb; ") as raised:
        match({**WANTED, "a\n\x1b[2Jb": (1,)})
    assert str(raised.value).isprintable()
