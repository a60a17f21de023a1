"""What is known of a card's speed: what the user says, this run, or an earlier one that is alike."""

from __future__ import annotations

import pytest

from jobs.config import read_settings
from jobs.launch import run_here
from jobs.prepare import prepare_run
from jobs.speed import known_speed, measured
from jobs.worker import Picture, Worker, run_shard
from tests.jobs.support import DAY, prepare, write_prompts


def make(prepared, seconds: float) -> None:
    """Make all of a run with pictures that say they took so long; the first of each batch took ten times that."""

    def generate(requests):
        return [Picture(b"x", False, seconds * (10 if number == 0 else 1)) for number, _ in enumerate(requests)]

    for shard in range(prepared.info.plan.shards):
        run_shard(prepared.run.shard(shard), prepared.run, generate, Worker("one", "fake", batch_size=4))


def speed_of(prepared, *words: str):
    settings = read_settings(words, prepared.info.settings)
    return known_speed(settings.spec, settings.profile, prepared.info.model, prepared.run)


def test_nothing_is_known_before_the_first_picture(tmp_path):
    prepared = prepare(tmp_path)
    assert measured(prepared.run) is None
    assert speed_of(prepared) is None


def test_a_run_tells_its_median_picture(tmp_path):
    prepared = prepare(tmp_path, "images_per_shard=6")
    make(prepared, 0.5)
    speed = speed_of(prepared)
    assert (speed.seconds_per_image, speed.source) == (0.5, f"as measured in {prepared.run.path}")


def test_the_user_knows_better(tmp_path):
    prepared = prepare(tmp_path)
    make(prepared, 0.5)
    assert speed_of(prepared, "seconds_per_image=3").seconds_per_image == 3.0


def test_a_real_worker_tells_how_long_it_took_to_begin(tmp_path):
    prepared = prepare(tmp_path, "steps=20")
    assert run_here(prepared.run, prepared.info.settings, [0], lambda: None) == 0
    speed = speed_of(prepared)
    assert 0.02 <= speed.seconds_per_image < 1.0
    assert speed.loading > 0.0


@pytest.mark.parametrize(
    ("words", "factor"),
    [
        (["steps=2"], 2.0),
        (["height=128"], 2.0),
        (["guidance_scale=1"], 0.5),
        (["name=other"], 1.0),
    ],
    ids=["steps", "size", "guidance", "name"],
)
def test_an_earlier_run_tells_the_speed_at_other_steps_and_sizes(tmp_path, words, factor):
    earlier = prepare(tmp_path)
    make(earlier, 0.5)
    later = prepare(tmp_path, "seed=9", *words)
    assert later.run.path != earlier.run.path
    speed = speed_of(later)
    assert speed.seconds_per_image == pytest.approx(0.5 * factor)
    assert speed.source == f"as measured in {earlier.run.path}"


@pytest.mark.parametrize("words", [["cluster=scnet-dcu"], ["device=cpu"], ["precision=full"]])
def test_a_run_on_another_card_or_in_another_precision_tells_nothing(tmp_path, words):
    make(prepare(tmp_path), 0.5)
    assert speed_of(prepare(tmp_path, "seed=9", *words)) is None


def test_a_plan_is_sharded_by_the_speed_of_an_earlier_run(tmp_path):
    make(prepare(tmp_path), 90.0)
    settings = read_settings(
        ["model=rehearsal", "steps=1", f"outputs={tmp_path / 'outputs'}", "seed=9", "batch_size=1"]
    )
    prepared = prepare_run(write_prompts(tmp_path, 60), settings, DAY)
    assert prepared.info.plan.images_per_shard == 10
    assert prepared.info.plan.shards == 6
    again = prepare_run(write_prompts(tmp_path, 60), settings, DAY)
    assert again.resumed
