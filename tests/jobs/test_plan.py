"""A plan is a function of the requests and the settings: the same from the same, another from anything else."""

from __future__ import annotations

import dataclasses

import pytest

from jobs.plan import PlanDigest, from_line, groups, image_file, index_ranges, parse_ranges, planned_images, to_line
from ldm.errors import ConfigError, RunError
from ldm.inference.spec import GenerationRequest, InitImage, SamplerConfig

REQUESTS = [GenerationRequest(prompt=f"number {number}", seed=number) for number in range(7)]
INIT = InitImage(path="/tmp/start.png", sha256="ab" * 32, strength=0.5)
HARD = [
    "",
    "two\nlines",
    '"quotes" \\ and {braces}',
    "\N{LION FACE}\u200d",
    "\u2028\x85",
    "x" * 10_000,
    "-n --help $(x)",
]


def plan_id(requests, images_per_shard=3, model=None):
    digest = PlanDigest(model or {"checkpoint": "a"}, 2)
    for image in planned_images(requests, images_per_shard):
        digest.add(image)
    return digest.totals()


def test_images_are_numbered_in_order_and_shards_are_filled_in_order():
    images = list(planned_images(REQUESTS, 3))
    assert [image.index for image in images] == [0, 1, 2, 3, 4, 5, 6]
    assert [image.shard for image in images] == [0, 0, 0, 1, 1, 1, 2]
    assert [image.request for image in images] == REQUESTS
    assert plan_id(REQUESTS).shards == 3
    assert plan_id(REQUESTS).images == 7


def test_a_plan_is_made_as_its_requests_come():
    endless = (GenerationRequest(prompt="a", seed=seed) for seed in iter(int, 1))
    assert next(planned_images(endless, 3)).index == 0


@pytest.mark.parametrize(
    ("index", "file"),
    [
        (0, "samples/000/000000.png"),
        (999, "samples/000/000999.png"),
        (1000, "samples/001/001000.png"),
        (999_999, "samples/999/999999.png"),
        (1_234_567, "samples/1234/1234567.png"),
    ],
)
def test_no_folder_holds_more_than_a_thousand_files(index, file):
    assert image_file(index) == file


@pytest.mark.parametrize(("format", "suffix"), [("png", "png"), ("jpeg", "jpg"), ("webp", "webp")])
def test_a_file_is_called_by_its_format(format, suffix):
    assert image_file(1234, format) == f"samples/001/001234.{suffix}"
    assert {image.file for image in planned_images(REQUESTS[:1], 3, format)} == {f"samples/000/000000.{suffix}"}


def test_the_same_plan_has_the_same_id():
    assert plan_id(REQUESTS) == plan_id(list(REQUESTS))


@pytest.mark.parametrize(
    "other",
    [
        plan_id([*REQUESTS, REQUESTS[0]]),
        plan_id(REQUESTS[:-1]),
        plan_id(REQUESTS[::-1]),
        plan_id([*REQUESTS[:-1], dataclasses.replace(REQUESTS[-1], sampler=SamplerConfig(steps=9))]),
        plan_id(REQUESTS, model={"checkpoint": "b"}),
    ],
    ids=["longer", "shorter", "reversed", "steps", "model"],
)
def test_another_plan_has_another_id(other):
    assert other.plan_id != plan_id(REQUESTS).plan_id


def test_the_size_of_shards_does_not_change_the_id():
    """A later submit knows the speed better; it goes on with the run that is there."""
    assert plan_id(REQUESTS, images_per_shard=4).plan_id == plan_id(REQUESTS).plan_id


@pytest.mark.parametrize("prompt", HARD, ids=range(len(HARD)))
def test_a_line_gives_back_the_picture_it_was_made_from(prompt):
    request = GenerationRequest(prompt=prompt, negative_prompt=prompt, init=INIT)
    [image] = planned_images([request], 1)
    line = to_line(image)
    assert line.count("\n") == 1
    assert from_line(line) == image


@pytest.mark.parametrize("line", ["", "{}", "[]", "not json", '{"index": 0}', '{"request": {}}'])
def test_a_damaged_line_is_an_error_of_the_run(line):
    with pytest.raises(RunError, match=r"plan\.jsonl is damaged"):
        from_line(line)


def test_groups_hold_everything_once_and_in_order():
    assert groups(range(7), 3) == [(0, 1, 2), (3, 4, 5), (6,)]
    assert groups([], 3) == []


@pytest.mark.parametrize(
    ("indices", "text"),
    [([0], "0"), ([0, 1, 2, 3], "0-3"), ([0, 2, 4], "0,2,4"), ([0, 1, 5, 7, 8, 9], "0-1,5,7-9")],
)
def test_numbers_are_written_as_slurm_writes_arrays_and_read_back(indices, text):
    assert index_ranges(indices) == text
    assert parse_ranges(text) == indices


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "1,,2", "1-2-3", "1 2", "1\n"])
def test_other_writings_of_numbers_are_refused(text):
    with pytest.raises(ConfigError, match="numbers are written as 0-3,7"):
        parse_ranges(text)
