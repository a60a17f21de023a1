"""The parameters in a picture are A1111's text: byte for byte where it wrote it, and nothing is lost on the way."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ldm.inference.infotext import Infotext, describe, format_infotext, parse_infotext
from ldm.inference.spec import GenerationRequest, InitImage, SamplerConfig, SamplerName, Shortcuts, Spacing

# Written by A1111 v1.6.0: a high-resolution pass, and image to image.
CAT = """1 cat
Negative prompt: out of frame,(worst quality, low quality, normal quality:2),text,bad eyes,weird eyes closed eyes,\
badhandv4:0.8,OverallDetail,render,bad quality,worst quality,signature,watermark,extra limbs,
Steps: 20, Sampler: DPM++ SDE Karras, CFG scale: 7, Seed: 2617670965, Size: 384x512, Model hash: 6ce0161689, \
Model: v1-5-pruned-emaonly, Denoising strength: 0.35, Hires upscale: 2, Hires upscaler: R-ESRGAN 4x+, Version: v1.6.0"""
STARS = """stars,out space,galaxy,
Negative prompt: text,
Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 3, Seed: 3318537879, Size: 768x1024, Model hash: 6ce0161689, \
Model: v1-5-pruned-emaonly, Denoising strength: 0.7, Version: v1.6.0"""
SCHEDULE_APART = "cat\nSteps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1, Version: v1.9.0"
QUOTED = 'cat\nSteps: 20, Seed: 1, Model: "a, b: c", Lora hashes: "one: 0aff, two: \\"x\\"", Tiling, Version: v1.7.0'
WRITTEN = [CAT, STARS, SCHEDULE_APART, QUOTED]


@pytest.mark.parametrize("text", WRITTEN)
def test_what_a1111_wrote_comes_back_byte_for_byte(text):
    assert format_infotext(parse_infotext(text)) == text


def test_the_parts_of_a_text_are_found():
    read = parse_infotext(CAT)
    assert read.prompt == "1 cat"
    assert read.negative_prompt.startswith("out of frame,(worst")
    assert read.negative_prompt.endswith("extra limbs,"), "the trailing comma belongs to the negative prompt"
    assert len(read.parameters) == 11
    assert read.parameters["Size"] == "384x512"
    assert read.parameters["Hires upscaler"] == "R-ESRGAN 4x+"


def test_quoted_values_are_read_as_they_were_meant():
    read = parse_infotext(QUOTED).parameters
    assert read["Model"] == "a, b: c"
    assert read["Lora hashes"] == 'one: 0aff, two: "x"'
    assert read["Tiling"] == "Tiling"


@pytest.mark.parametrize(
    "prompt",
    [
        "Tokyo street, time: night, mood: calm, lens: 35mm",
        "Steps: many, mood: calm, lens: 35mm",
        "one line\nand, a: b, c: d, e: f",
        "",
    ],
)
def test_a_prompt_with_colons_is_not_taken_for_parameters(prompt):
    assert parse_infotext(prompt) == Infotext(prompt)


def test_two_pairs_are_a_prompt_and_three_are_parameters():
    assert parse_infotext("cat\nSteps: 20, Seed: 1").parameters == {}
    assert parse_infotext("cat\nSteps: 20, Seed: 1, Size: 8x8").parameters["Seed"] == "1"


def test_a_prompt_may_be_empty_beside_a_negative_one():
    text = "Negative prompt: blur\nSteps: 20, Sampler: DDIM, Seed: 1"
    assert parse_infotext(text).prompt == ""
    assert parse_infotext(text).negative_prompt == "blur"
    assert format_infotext(parse_infotext(text)) == text


def test_a_prompt_line_that_begins_like_a_negative_prompt_reads_as_one():
    read = parse_infotext("cat\nNegative prompt: is a phrase\nNegative prompt: blur\nSteps: 1, Sampler: DDIM, Seed: 1")
    assert read.prompt == "cat"
    assert read.negative_prompt == "is a phrase\nNegative prompt: blur"


def test_a_request_reads_as_a1111_would_say_it():
    request = GenerationRequest(
        prompt="一只猫\n在花园里",
        negative_prompt="blur",
        seed=7,
        height=512,
        width=384,
        sampler=SamplerConfig(steps=20),
    )
    assert format_infotext(
        describe(request, {"Note": "x", "Model hash": "6ce0161689", "Model": "v1: mine", "RNG": None})
    ) == (
        "一只猫\n在花园里\nNegative prompt: blur\n"
        "Steps: 20, Sampler: PLMS, CFG scale: 7.5, Seed: 7, Size: 384x512, "
        'Model hash: 6ce0161689, Model: "v1: mine", Note: x, Version: sdbatch'
    )


def test_strength_eta_and_spacing_are_told_when_they_matter():
    sampler = SamplerConfig(name=SamplerName.DDIM, steps=20, guidance_scale=7.0, eta=0.5, schedule=Spacing.QUAD)
    init = InitImage(path="a.png", sha256="0123456789abcdef", strength=0.75)
    told = describe(GenerationRequest(prompt="cat", sampler=sampler, init=init)).parameters
    assert told["CFG scale"] == "7"
    assert told["Eta DDIM"] == "0.5"
    assert told["Schedule type"] == "Quad"
    assert told["Denoising strength"] == "0.75"
    assert told["Init image hash"] == "0123456789"
    plain = describe(GenerationRequest(prompt="cat")).parameters
    assert list(plain) == ["Steps", "Sampler", "CFG scale", "Seed", "Size", "RNG", "Version"]
    assert plain["RNG"] == "CPU"


def test_what_was_left_out_is_told_and_read_back():
    sampler = SamplerConfig(steps=20, shortcuts=Shortcuts(cache_interval=3, guidance_until=0.5, merge_tokens=0.25))
    told = describe(GenerationRequest(prompt="cat", sampler=sampler))
    assert told.parameters["DeepCache interval"] == "3"
    assert told.parameters["Guidance until"] == "0.5"
    assert told.parameters["Token merging ratio"] == "0.25"
    assert parse_infotext(format_infotext(told)) == told


def test_our_dpm_solver_does_not_claim_to_be_that_of_a1111():
    sampler = SamplerConfig(name=SamplerName.DPM_SOLVER, steps=15)
    label = describe(GenerationRequest(prompt="cat", sampler=sampler)).parameters["Sampler"]
    assert label == "DPM-Solver++ 2M (CompVis)"


keys = st.from_regex(r"[A-Za-z][A-Za-z0-9 _/\-]*[A-Za-z0-9]", fullmatch=True)
lines = st.text(st.characters(blacklist_categories=("Cs", "Cc")), max_size=40)
prompts = st.lists(lines.filter(lambda line: not line.startswith("Negative prompt:")), max_size=4).map(
    lambda some: "\n".join(some).strip()
)


# A busy machine draws examples slowly, which says nothing about the code.
@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@given(prompts, prompts, st.dictionaries(keys, st.text(st.characters(blacklist_categories=("Cs",))), max_size=6))
def test_whatever_is_written_is_read_back(prompt, negative, unknown):
    written = Infotext(prompt, negative, {**unknown, "Steps": "20", "Sampler": "DDIM", "Seed": "1"})
    assert parse_infotext(format_infotext(written)) == written
