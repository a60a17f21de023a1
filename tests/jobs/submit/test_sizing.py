"""Shards and tasks are sized by time, keep every limit, and hold every picture once."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.spec import ClusterProfile, JobSpec
from jobs.submit.sizing import (
    Load,
    Speed,
    Work,
    arrays_of,
    estimate,
    images_per_shard,
    links_of,
    load_of,
    shards_per_process,
    with_cards_for,
)

SITE = ClusterProfile(scheduler="slurm")


def speed(seconds_per_image: float, loading: float = 0.0) -> Speed:
    return Speed(seconds_per_image, loading, "as measured")


@pytest.mark.parametrize(
    ("seconds", "images", "expected"),
    [
        (1.0, 100_000, 900),
        (0.001, 500_000, 1000),
        (9.0, 10_000, 100),
        (2000.0, 50, 1),
        (1.0, 1_000_000, 1000),
        (1.0, 5_000_000, 5000),
        (900.0, 100_000, 100),
    ],
    ids=["15 min", "a folder", "slow", "an hour each", "a million", "more", "a thousand records"],
)
def test_a_shard_is_what_a_quarter_of_an_hour_makes_within_limits(seconds, images, expected):
    assert images_per_shard(JobSpec(batch_size=1), images, speed(seconds)) == expected


def test_where_nothing_is_known_a_shard_has_a_hundred():
    assert images_per_shard(JobSpec(), 10_000, None) == 100
    assert images_per_shard(JobSpec(), 1_000_000, None) == 1000
    assert images_per_shard(JobSpec(output="webdataset"), 10_000, None) == 1000


@pytest.mark.parametrize(
    ("batch_size", "seconds", "expected"),
    [(8, None, 104), (4, None, 100), (16, 0.001, 992), (6, 9.0, 102), (7, 2000.0, 7), (1500, 0.1, 1500)],
)
def test_a_shard_is_of_whole_batches(batch_size, seconds, expected):
    known = None if seconds is None else speed(seconds)
    assert images_per_shard(JobSpec(batch_size=batch_size), 5_000, known) == expected


def test_every_card_has_a_shard_where_there_are_pictures_for_it():
    assert images_per_shard(JobSpec(cards=4), 100, speed(1.0)) == 25
    assert images_per_shard(JobSpec(cards=4, batch_size=4), 8, speed(1.0)) == 2


def test_what_the_user_says_holds():
    assert images_per_shard(JobSpec(images_per_shard=7), 10_000, speed(1.0)) == 7
    assert shards_per_process(JobSpec(images_per_shard=7), 7, speed(1.0)) == 1


def test_a_task_goes_through_as_many_shards_as_fill_its_time():
    assert shards_per_process(JobSpec(), 100, speed(1.0)) == 9
    assert shards_per_process(JobSpec(task_min=60), 100, speed(1.0)) == 36
    assert shards_per_process(JobSpec(), 100, None) == 1


def test_starting_is_at_most_a_twentieth_of_a_task():
    """120 s of loading want 40 minutes."""
    assert shards_per_process(JobSpec(), 100, speed(1.0, loading=120.0)) == 24


def test_a_task_is_planned_to_fit_its_limit():
    assert shards_per_process(JobSpec(task_min=60, time_limit_min=10), 100, speed(1.0)) == 5


@given(
    count=st.integers(1, 3000),
    per_process=st.integers(1, 20),
    cards=st.integers(1, 8),
    array=st.integers(1, 400),
)
def test_arrays_hold_every_shard_once_within_the_limits(count, per_process, cards, array):
    profile = ClusterProfile(scheduler="slurm", max_array_size=array)
    arrays = arrays_of(range(count), per_process, JobSpec(cards=cards), profile)
    tasks = list(itertools.chain(*arrays))
    assert list(itertools.chain(*tasks)) == list(range(count))
    assert max(map(len, arrays)) <= array
    assert {len(task) for task in tasks[:-1]} <= {cards * per_process}
    assert max(map(len, arrays)) * (1 + 2 * cards) < 1000, "submitit's files of an array fit into one folder"


@given(
    count=st.integers(1, 3000),
    seconds=st.floats(0.1, 3600.0),
    cards=st.integers(1, 8),
    jobs=st.one_of(st.none(), st.integers(1, 50)),
    parallel=st.one_of(st.none(), st.integers(1, 5)),
    requeue=st.booleans(),
)
def test_a_load_keeps_the_limits_and_can_do_all_that_it_holds(count, seconds, cards, jobs, parallel, requeue):
    spec = JobSpec(cards=cards, max_parallel=parallel, requeue=requeue, time_limit_min=60)
    work = Work(count, 10, speed(seconds, loading=30.0))
    load = load_of(work, spec, SITE, jobs)
    arrays = arrays_of(range(load.shards), load.per_process, spec, SITE)
    tasks = sum(map(len, arrays))
    assert jobs is None or tasks == 1 or tasks * load.links <= jobs
    assert parallel is None or len(arrays) <= parallel
    sampling, each = load.per_process * 10 * seconds, 0.8 * 60 * 60 - 30.0
    assert requeue or sampling <= load.links * each or seconds > each, "each link loads the model"
    assert load.shards == count or (jobs is not None and not requeue), "all of it, where jobs go on by themselves"
    assert load.shards == count or (tasks + 1) * load.links > jobs, "no more would fit"


def test_tasks_that_are_longer_than_a_limit_get_links_that_share_the_limit_of_jobs():
    """Of shards of 8000 s, in jobs that are planned for 5760 s; 99 jobs are 33 chains of three."""
    spec = JobSpec(requeue=False, images_per_shard=2000)
    assert load_of(Work(40, 2000, speed(4.0)), spec, SITE, None) == Load(40, 1, 2)
    assert load_of(Work(40, 2000, speed(4.0)), spec, SITE, 99) == Load(40, 1, 2)
    assert load_of(Work(60, 2000, speed(4.0)), spec, SITE, 99) == Load(60, 2, 3)


def test_what_few_jobs_cannot_do_is_left_for_later():
    """400,000 pictures at 4 s are 444 hours, and 99 jobs of two hours do not have as many."""
    load = load_of(Work(1000, 400, speed(4.0)), JobSpec(requeue=False), SITE, 99)
    assert load == Load(shards=297, per_process=3, links=1)


def test_a_job_has_no_more_cards_than_shards():
    assert with_cards_for(JobSpec(cards=4), 3).cards == 3
    assert with_cards_for(JobSpec(cards=4), 30).cards == 4


def test_arrays_are_split_where_the_site_says():
    arrays = arrays_of(range(10), 1, JobSpec(cards=2), ClusterProfile(scheduler="slurm", max_array_size=2))
    assert arrays == [[(0, 1), (2, 3)], [(4, 5), (6, 7)], [(8, 9)]]


@pytest.mark.parametrize(
    ("spec", "profile", "known", "expected"),
    [
        (JobSpec(), SITE, speed(1e4), 1),
        (JobSpec(requeue=False, time_limit_min=100), SITE, speed(100.0), 3),
        (JobSpec(requeue=False, time_limit_min=100), SITE, speed(100.0, loading=800.0), 3),
        (JobSpec(requeue=False, time_limit_min=100), SITE, speed(100.0, loading=2400.0), 5),
        (JobSpec(requeue=False, time_limit_min=100), SITE, speed(100.0, loading=4750.0), 1),
        (JobSpec(time_limit_min=100), ClusterProfile(scheduler="slurm", requeue=False), speed(40.0), 1),
        (JobSpec(requeue=False), SITE, None, 1),
        (JobSpec(links=4), SITE, None, 4),
    ],
    ids=[
        "requeue",
        "no requeue",
        "loading",
        "half is loading",
        "only loading",
        "the site has none",
        "unknown",
        "asked for",
    ],
)
def test_a_chain_has_a_link_for_each_time_limit_where_jobs_may_not_requeue(spec, profile, known, expected):
    """For 100 pictures, in jobs that are planned for 4,800 s; each loads the model again."""
    assert links_of(Work(10, 10, known), 10, spec, profile) == expected


def test_an_estimate_charges_every_card_of_a_task_until_the_last_is_done():
    profile = ClusterProfile(scheduler="slurm", price_per_card_hour=2.0)
    tasks = [(200, 200, 100), (200, 0)]  # the cards take turns: 300 and 200 pictures, 200 and none
    found = estimate(tasks, JobSpec(cards=2), profile, speed(3.6, loading=90.0))
    assert found.card_hours == pytest.approx(2 * (500 * 3.6 + 2 * 90) / 3600)
    assert found.cost == pytest.approx(2.0 * found.card_hours)
    assert found.task_seconds == pytest.approx(300 * 3.6 + 90)
