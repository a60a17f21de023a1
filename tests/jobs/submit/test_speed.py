"""What is known of a card's speed: what the user says, this run, or an earlier one that is alike."""

from __future__ import annotations

import dataclasses
import os

import pytest

from jobs.config import read_settings
from jobs.submit.launch import run_here
from jobs.submit.prepare import prepare_run
from jobs.submit.speed import CACHED_STEP, kind_of, known_speed, measured
from jobs.worker.worker import Picture, Worker, run_shard
from tests.jobs.support import DAY, prepare, write_prompts


def make(prepared, seconds: float, worker: str = "one") -> None:
    """Make all of a run with pictures that say they took so long; the first of each batch took ten times that."""

    def generate(requests):
        return [Picture(lambda: b"x", False, seconds * (10 if number == 0 else 1)) for number, _ in enumerate(requests)]

    for shard in range(prepared.info.plan.shards):
        run_shard(prepared.run.shard(shard), prepared.run, generate, Worker(worker, "fake", batch_size=4))


def speed_of(prepared, *words: str):
    settings = read_settings(words, prepared.info.settings)
    return known_speed(settings.spec, settings.profile, prepared.info.model, prepared.run)


def test_nothing_is_known_before_the_first_picture(tmp_path):
    prepared = prepare(tmp_path)
    assert measured(prepared.run, kind_of(prepared.info.settings)) is None
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
        (["guidance_until=0.5"], 0.75),
        (["cache_interval=5"], 0.2 + 0.8 * CACHED_STEP),
        (["name=other"], 1.0),
    ],
    ids=["steps", "size", "guidance", "guidance until", "cache", "name"],
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


def submitted(prepared, job: str, *words: str) -> None:
    settings = read_settings(words, prepared.info.settings)
    scheduler = settings.profile.scheduler
    task = {"job": job, "shards": [0], "logs": []}
    kind = dataclasses.asdict(kind_of(settings))
    prepared.run.add_submission({"scheduler": scheduler, "tasks": [task], "script": "", "kind": kind})


def test_a_run_that_goes_on_on_another_kind_of_card_tells_nothing_of_it(tmp_path):
    prepared = prepare(tmp_path, "cluster=scnet-dcu")
    make(prepared, 0.5, "dcu1/12_0/77")
    assert speed_of(prepared).seconds_per_image == 0.5
    for words in (["cluster=local"], ["cluster.gres=gpu"], ["cluster.partition=other"], ["device=cpu"]):
        assert speed_of(prepared, *words) is None


def test_pictures_tell_of_the_card_that_their_job_was_submitted_to(tmp_path):
    prepared = prepare(tmp_path, "cluster=scnet-dcu")
    make(prepared, 0.5, "dcu1/12_0/77")
    submitted(prepared, "12_0", "cluster.partition=other")
    assert speed_of(prepared, "cluster.partition=other").seconds_per_image == 0.5
    assert speed_of(prepared) is None


def test_pictures_of_this_machine_tell_of_how_it_was_started_last(tmp_path):
    prepared = prepare(tmp_path, "cluster=scnet-dcu")
    make(prepared, 0.5, "login/77")
    submitted(prepared, "local-70", "cluster=local", "device=cpu")
    assert speed_of(prepared, "cluster=local", "device=cpu").seconds_per_image == 0.5
    assert speed_of(prepared) is None


def planned(prepared, name: str, seconds: float) -> None:
    """Give a run another name, and say when it was planned."""
    path = prepared.run.path.rename(prepared.run.path.parent / name)
    os.utime(path / "run.yaml", (seconds, seconds))


@pytest.mark.parametrize(
    ("runs", "newest"),
    [
        ({"z-20240102": 1, "a-20240103": 1, "prompts-20240101-4": 1}, "a-20240103"),
        ({"prompts-20240102-9": 1, "prompts-20240102-10": 1, "prompts-20240102": 1}, "prompts-20240102-10"),
        ({"prompts-20240102-2": 1, "probe-prompts-20240102": 2, "z-20240102": 1}, "probe-prompts-20240102"),
    ],
    ids=["day", "number", "time of day"],
)
def test_the_newest_run_tells(tmp_path, runs, newest):
    """Runs by when they were planned on their day."""
    for seed, (name, seconds) in enumerate(runs.items()):
        earlier = prepare(tmp_path, f"seed={seed}")
        make(earlier, 0.5)
        planned(earlier, name, seconds)
    assert speed_of(prepare(tmp_path, "seed=99")).source.endswith(f"/{newest}")


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
