"""The grid that is shown first is the one that holds most of the run and has few holes."""

from __future__ import annotations

import itertools

import pytest

from jobs.pages.sweep import describe_all, find_sweep
from ldm.inference.spec import GenerationRequest, SamplerConfig, Shortcuts

STEPS = [SamplerConfig(steps=steps) for steps in (10, 20, 30)]


def grid(prompts: int = 1, seeds: int = 1, samplers: int = 1, unique: bool = False) -> list[GenerationRequest]:
    cells = itertools.product(range(prompts), range(samplers), range(seeds))
    return [
        GenerationRequest(prompt=f"prompt {prompt}", seed=number if unique else seed, sampler=STEPS[sampler])
        for number, (prompt, sampler, seed) in enumerate(cells)
    ]


@pytest.mark.parametrize(
    ("requests", "axes"),
    [
        (grid(prompts=5, seeds=4), ("prompt", "seed")),
        (grid(prompts=5, samplers=3), ("prompt", "steps")),
        (grid(seeds=4, samplers=3), ("steps", "seed")),
        (grid(prompts=2, seeds=4, samplers=3), ("prompt", "seed")),
        (grid(prompts=5, seeds=4, unique=True), ("prompt", "take")),
        (grid(prompts=5, seeds=1, unique=True), None),
        (grid(seeds=9), None),
        ([], None),
    ],
    ids=["seeds", "steps", "no prompts", "three fields", "seeds that never return", "a diagonal", "one field", "none"],
)
def test_the_fullest_grid_is_found(requests, axes):
    sweep = find_sweep(describe_all(requests))
    assert (sweep and (sweep.rows, sweep.columns)) == axes


def test_what_is_left_out_makes_an_axis():
    intervals = [SamplerConfig(shortcuts=Shortcuts(cache_interval=interval)) for interval in (1, 2, 3)]
    requests = [GenerationRequest(prompt=prompt, sampler=sampler) for prompt in "ab" for sampler in intervals]
    sweep = find_sweep(describe_all(requests))
    assert sweep is not None
    assert (sweep.rows, sweep.columns) == ("prompt", "cache_interval")


def test_fields_that_do_not_vary_are_not_offered():
    sweep = find_sweep(describe_all(grid(prompts=5, samplers=3)))
    assert sweep is not None
    assert sweep.fields == ("prompt", "steps")


def test_pictures_that_differ_in_their_seed_alone_are_counted():
    described = describe_all(grid(prompts=2, seeds=3, unique=True))
    assert [values["take"] for values in described] == [1, 2, 3, 1, 2, 3]
