"""One pass over the records gathers every picture's seconds, and chooses evenly which pictures are shown."""

from __future__ import annotations

import pytest

from jobs.state.survey import EvenSample, take_survey
from jobs.worker.worker import Worker, run_shard
from tests.jobs.support import FakeModel, prepare

WORKER = Worker(name="one", device="fake", batch_size=2)


def taken(prompts: list[str], limit: int) -> list[int]:
    sample = EvenSample(len(prompts), limit)
    return [number for number, prompt in enumerate(prompts) if sample.takes(prompt)]


def test_all_are_taken_where_the_limit_allows_it():
    assert taken([f"prompt {number}" for number in range(50)], 50) == list(range(50))


@pytest.mark.parametrize("per_prompt", [1, 4, 7, 1000])
def test_a_sample_is_even_and_never_larger_than_the_limit(per_prompt):
    chosen = taken([f"prompt {number // per_prompt}" for number in range(1000)], 100)
    assert 80 <= len(chosen) <= 100
    halves = sum(number < 500 for number in chosen), sum(number >= 500 for number in chosen)
    assert abs(halves[0] - halves[1]) <= 10


def test_all_pictures_of_a_prompt_are_taken_or_none():
    chosen = taken([f"prompt {number // 4}" for number in range(1000)], 200)
    assert [chosen[start] % 4 for start in range(0, len(chosen), 4)] == [0] * (len(chosen) // 4)
    assert all(chosen[start + 3] == chosen[start] + 3 for start in range(0, len(chosen), 4))


def test_what_failed_or_is_flagged_is_shown_beside_the_sample(tmp_path):
    prepared = prepare(tmp_path, count=40)
    model = FakeModel(fail=["picture number 33"], flag=["picture number 35"])
    for shard in range(20):
        run_shard(prepared.run.shard(shard), prepared.run, model, WORKER)
    survey = take_survey(prepared.run, prepared.info, 40, 8)
    assert (survey.found, len(survey.seconds["one"]), survey.failed) == (40, 39, {"one": 1})
    assert {33, 35} <= {record.index for record in survey.shown}
    assert len(survey.shown) <= 10
    assert [failure.index for failure in survey.failures] == [33]
    assert [record.index for record in survey.flagged] == [35]
    assert list(survey.indices["one"]) == [index for index in range(40) if index != 33]
