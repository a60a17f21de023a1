"""A request is plain data: checked where it is built, the same after a trip through JSON, and known by its id."""

from __future__ import annotations

import dataclasses
import json
import re
import string

import pytest

from ldm.errors import RequestError
from ldm.inference.spec import (
    GenerationRequest,
    InitImage,
    SamplerConfig,
    SamplerName,
    Shortcuts,
    Spacing,
    check_size,
    from_json,
    to_json,
    to_text,
)

PLAIN = GenerationRequest(prompt="a lion")
WHOLE = GenerationRequest(
    prompt='two\nlines, \N{LION FACE} and "quotes"',
    negative_prompt="blurry",
    seed=2**32 - 1,
    height=64,
    width=128,
    sampler=SamplerConfig(SamplerName.DDIM, steps=9, guidance_scale=2.5, eta=0.5, schedule=Spacing.QUAD),
    init=InitImage(path="/tmp/start.png", sha256="ab" * 32, strength=0.5),
)
# One change of every field, each against WHOLE.
CHANGES = [
    {"prompt": "a cat"},
    {"negative_prompt": ""},
    {"seed": 0},
    {"height": 72},
    {"width": 64},
    {"sampler": dataclasses.replace(WHOLE.sampler, name=SamplerName.PLMS, eta=0.0)},
    {"sampler": dataclasses.replace(WHOLE.sampler, steps=10)},
    {"sampler": dataclasses.replace(WHOLE.sampler, guidance_scale=2.0)},
    {"sampler": dataclasses.replace(WHOLE.sampler, eta=0.0)},
    {"sampler": dataclasses.replace(WHOLE.sampler, schedule=Spacing.UNIFORM)},
    {"sampler": dataclasses.replace(WHOLE.sampler, shortcuts=Shortcuts(cache_interval=3))},
    {"sampler": dataclasses.replace(WHOLE.sampler, shortcuts=Shortcuts(guidance_until=0.6))},
    {"sampler": dataclasses.replace(WHOLE.sampler, shortcuts=Shortcuts(merge_tokens=0.5))},
    {"init": InitImage(path="/tmp/start.png", sha256="cd" * 32, strength=0.5)},
    {"init": InitImage(path="/tmp/start.png", sha256="ab" * 32, strength=0.75)},
    {"init": None},
]


SHORT = dataclasses.replace(PLAIN, sampler=SamplerConfig(shortcuts=Shortcuts(5, guidance_until=0.5, merge_tokens=0.25)))


@pytest.mark.parametrize("request_", [PLAIN, WHOLE, SHORT], ids=["plain", "whole", "short"])
def test_a_request_comes_back_from_json_as_it_was(request_):
    assert from_json(json.loads(json.dumps(to_json(request_)))) == request_


@pytest.mark.parametrize(
    "request_", [PLAIN, WHOLE, *(dataclasses.replace(WHOLE, **change) for change in CHANGES)], ids=lambda _: ""
)
def test_text_of_a_request_is_what_json_writes(request_):
    """It is put together by hand, as a plan has a million of them."""
    written = json.dumps(to_json(request_), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    assert to_text(request_) == written


def test_equal_requests_have_one_text_and_one_id():
    """A cache stands behind both, and must not give what happened to be asked for first."""
    whole, real = (
        dataclasses.replace(WHOLE, sampler=dataclasses.replace(WHOLE.sampler, guidance_scale=scale, eta=eta))
        for scale, eta in ((2, 0), (2.0, -0.0))
    )
    assert whole == real
    assert (to_text(whole), whole.request_id) == (to_text(real), real.request_id)


def test_equal_shortcuts_have_one_text_and_one_id():
    whole, real = (
        dataclasses.replace(PLAIN, sampler=SamplerConfig(steps=10, shortcuts=Shortcuts(2, until, merged)))
        for until, merged in ((1, 0), (1.0, -0.0))
    )
    assert whole == real
    assert (to_text(whole), whole.request_id) == (to_text(real), real.request_id)


def test_an_id_is_16_hex_digits():
    assert len(WHOLE.request_id) == 16
    assert set(WHOLE.request_id) <= set(string.hexdigits.lower())


def test_every_field_changes_the_id():
    ids = {dataclasses.replace(WHOLE, **change).request_id for change in CHANGES}
    assert len(ids | {WHOLE.request_id}) == len(CHANGES) + 1


def test_an_init_image_counts_by_its_content_not_by_its_place():
    assert WHOLE.init is not None
    moved = dataclasses.replace(WHOLE, init=dataclasses.replace(WHOLE.init, path="/elsewhere.png"))
    assert moved.request_id == WHOLE.request_id


def test_ids_are_the_same_in_every_release():
    assert (PLAIN.request_id, WHOLE.request_id) == ("6a0d46f0183c8100", "a50f855b0ed67a32")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SamplerConfig(steps=0), "steps must be in 1..1000, got 0"),
        (lambda: SamplerConfig(steps=1001), "steps must be in 1..1000, got 1001"),
        (lambda: SamplerConfig(guidance_scale=-1), "guidance_scale must be in 0..100 (1.0 = off), got -1"),
        (lambda: SamplerConfig(SamplerName.DDIM, eta=2), "eta must be in 0..1, got 2"),
        (lambda: SamplerConfig(eta=0.5), "eta=0.5 needs sampler 'ddim'; 'plms' takes none"),
        (
            lambda: SamplerConfig(SamplerName.DPM_SOLVER, schedule=Spacing.QUAD),
            "schedule='quad' needs sampler 'ddim' or 'plms'; 'dpm_solver' has steps of its own",
        ),
        (
            lambda: SamplerConfig(SamplerName.LCM, steps=4, schedule=Spacing.QUAD),
            "schedule='quad' needs sampler 'ddim' or 'plms'; 'lcm' has steps of its own",
        ),
        (
            lambda: SamplerConfig(SamplerName.LCM, steps=51),
            "steps must be in 1..50 for sampler 'lcm', got 51; 4 to 8 are usual",
        ),
        (lambda: SamplerConfig(SamplerName.LCM, eta=0.5), "eta=0.5 needs sampler 'ddim'; 'lcm' takes none"),
        (lambda: Shortcuts(cache_interval=0), "cache_interval must be in 1..5 (1 = off), got 0"),
        (lambda: Shortcuts(cache_interval=6), "cache_interval must be in 1..5 (1 = off), got 6"),
        *(
            (
                lambda until=until: Shortcuts(guidance_until=until),
                f"guidance_until must be above 0 and at most 1 (1.0 = every step), got {until}; "
                "guidance_scale=1.0 guides no step",
            )
            for until in (0.0, 1.5, float("nan"))
        ),
        (lambda: Shortcuts(merge_tokens=0.8), "merge_tokens must be in 0..0.75 (0 = off), got 0.8"),
        (lambda: Shortcuts(merge_tokens=-0.1), "merge_tokens must be in 0..0.75 (0 = off), got -0.1"),
        (
            lambda: SamplerConfig(guidance_scale=1.0, shortcuts=Shortcuts(guidance_until=0.5)),
            "guidance_until=0.5 needs guidance; guidance_scale 1.0 is none",
        ),
        (lambda: InitImage("", "", strength=0), "strength must be above 0 and at most 1, got 0"),
        (lambda: InitImage("", "", strength=1.5), "strength must be above 0 and at most 1, got 1.5"),
        (
            lambda: dataclasses.replace(PLAIN, init=InitImage("", "", strength=0.01)),
            "strength 0.01 of 50 steps is no step at all; it must be at least 0.02 with so many",
        ),
        (lambda: dataclasses.replace(PLAIN, seed=-1), "seed must be in 0..4294967295, got -1"),
        (lambda: dataclasses.replace(PLAIN, seed=2**32), "seed must be in 0..4294967295, got 4294967296"),
        (
            lambda: dataclasses.replace(PLAIN, height=500),
            "height must be a multiple of 8 px, at most 4096, got 500; try 496",
        ),
        (lambda: dataclasses.replace(PLAIN, width=0), "width must be a multiple of 8 px, at most 4096, got 0; try 8"),
        (lambda: check_size("width", 9000), "width must be a multiple of 8 px, at most 4096, got 9000; try 4096"),
        (lambda: check_size("width", 96, 64), "width must be a multiple of 64 px, at most 4096, got 96; try 128"),
    ],
)
def test_what_no_model_can_make_is_refused_where_it_is_built(build, message):
    with pytest.raises(RequestError) as caught:
        build()
    assert str(caught.value) == message


@pytest.mark.parametrize("side", [8, 64, 512, 4096])
def test_good_sides_pass(side):
    assert dataclasses.replace(PLAIN, height=side, width=side).height == side


@pytest.mark.parametrize("steps", [1, 3, 7, 9, 30, 50, 999, 1000])
def test_the_strength_that_an_error_advises_is_enough(steps):
    with pytest.raises(RequestError, match="no step at all") as error:
        InitImage("", "", strength=1e-9).steps_of(steps)
    advised = float(re.search(r"at least (\S+) with", str(error.value)).group(1))
    assert InitImage("", "", strength=advised).steps_of(steps) == 1
