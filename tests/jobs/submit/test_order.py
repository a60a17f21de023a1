"""What is started, for which price and where not, follows from the run's own files and what Slurm says."""

from __future__ import annotations

import shutil

import pytest

from jobs.attendance import End
from jobs.cluster.queue import JobState
from jobs.config import read_settings
from jobs.submit import order as module
from jobs.submit.launch import Order
from jobs.submit.order import forecast, jobs_in_queue, parts_of, place_order
from jobs.worker.worker import Worker, run_shard
from ldm.errors import SchedulerError
from tests.jobs.crew import attended
from tests.jobs.support import FakeModel, prepare

SITE = "cluster=scnet-dcu", "cluster.price_per_card_hour=2", "cluster.currency=yuan"

NOW = 1e9


@pytest.fixture(autouse=True)
def quiet_slurm(monkeypatch):
    monkeypatch.setattr(module, "expected_start", lambda directives: None)


def ordered(prepared, *words: str):
    settings = read_settings([*SITE, *words], prepared.info.settings)
    shards = range(prepared.info.plan.shards)
    order = place_order(prepared.run, prepared.info, settings, shards, {}, NOW)
    return order, forecast(prepared.run, prepared.info, settings, order)


def test_nothing_known_costs_nobody_knows_what(tmp_path):
    order, lines = ordered(prepare(tmp_path, "images_per_shard=2"))
    assert (order.shards, order.per_process, order.links, order.exclude) == ((0, 1, 2), 1, 1, ())
    assert lines == [
        "cost unknown: nothing has been measured yet; python -m jobs probe PROMPTS measures a few pictures"
    ]


def test_a_known_speed_gives_hours_and_money(tmp_path):
    prepared = prepare(tmp_path, count=60)
    _, lines = ordered(prepared, "seconds_per_image=60")
    assert lines == [
        "about 1.00 card-hours, 2.00 yuan; a task lasts 2 min (60 s an image, as seconds_per_image says)",
    ]


def test_slurms_word_on_the_beginning_is_passed_on(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "expected_start", lambda directives: "2026-01-02T03:04:05")
    _, lines = ordered(prepare(tmp_path))
    assert lines[-1] == "Slurm expects the first task to begin at 2026-01-02T03:04:05"


def test_a_chain_is_as_long_as_its_work(tmp_path):
    order, _ = ordered(prepare(tmp_path), "requeue=false", "seconds_per_image=2000", "time_limit_min=60")
    assert order.links == 2, "of two pictures a task, one in each hour"


def test_a_node_on_which_everything_fails_is_left_out_and_named(tmp_path, caplog, monkeypatch):
    prepared = prepare(tmp_path)

    def leave(host: str, minute: int, end: End) -> None:
        then = NOW - 86_400 + 60.0 * minute
        attended(prepared.run, host=host, task=str(minute), started=then, updated=then + 9, end=end)

    for minute in (1, 2, 3):
        leave("dcu7", minute, End.ERROR)
    leave("dcu8", 4, End.ERROR)
    order, _ = ordered(prepared)
    assert order.exclude == (), "no other node has done better"
    leave("dcu8", 5, End.DONE)
    order, _ = ordered(prepared)
    assert order.exclude == ("dcu7",)
    assert "3 workers have failed on node dcu7: it is left out of this submission" in caplog.text
    monkeypatch.setattr(f"{__name__}.NOW", NOW + 3600)
    order, _ = ordered(prepared)
    assert order.exclude == (), "a day later it gets another chance"


def test_a_worker_that_begins_after_the_queue_was_asked_is_not_lost(tmp_path):
    prepared = prepare(tmp_path)
    for minute in (1, 2, 3):
        attended(prepared.run, host="dcu7", task=str(minute), started=NOW + 60 * minute, updated=NOW + 60 * minute + 9)
    attended(prepared.run, host="dcu8", task="9", started=NOW + 300, updated=NOW + 309, end=End.DONE)
    order, _ = ordered(prepared)
    assert order.exclude == ()


def test_what_is_made_already_is_not_charged(tmp_path):
    prepared = prepare(tmp_path, "images_per_shard=30", count=60)
    run_shard(prepared.run.shard(0), prepared.run, FakeModel(), Worker(name="one", device="fake", batch_size=2))
    _, lines = ordered(prepared, "seconds_per_image=60", "batch_size=2")
    assert lines[0].startswith("about 0.50 card-hours, 1.00 yuan; a task lasts 30 min")


def test_all_cards_of_a_task_are_charged_and_no_more_are_asked_than_there_are_shards(tmp_path):
    prepared = prepare(tmp_path, "images_per_shard=30", count=90)
    _, lines = ordered(prepared, "seconds_per_image=60", "cards=2")
    assert lines[0].startswith("about 2.00 card-hours"), "the second task has one shard and holds two cards"
    _, lines = ordered(prepared, "seconds_per_image=60", "cards=4")
    assert lines[0].startswith("about 1.50 card-hours")


def test_slurm_is_asked_about_what_will_be_submitted(tmp_path, monkeypatch):
    asked = {}
    monkeypatch.setattr(module, "expected_start", asked.update)
    prepared = prepare(tmp_path, "images_per_shard=30", count=60)
    settings = read_settings([*SITE, "cards=4", "cluster.directives.exclude=dcu1"], prepared.info.settings)
    forecast(prepared.run, prepared.info, settings, Order((0, 1), exclude=("dcu7",)))
    assert (asked["gres"], asked["exclude"]) == ("dcu:2", "dcu1,dcu7")


def test_more_than_the_queue_takes_is_left_for_later(tmp_path, caplog):
    prepared = prepare(tmp_path, "images_per_shard=1", count=12)
    words = "seconds_per_image=1800", "requeue=false", "time_limit_min=60", "cluster.max_submit_jobs=5", "post=[verify]"
    order, _ = ordered(prepared, *words)
    assert (order.shards, order.links) == ((0, 1, 2, 3), 1), "one of the five is for what comes behind"
    assert "4 of 12 shards are submitted, as max_submit_jobs=5 allows no more; python -m jobs resume" in caplog.text


def test_a_full_queue_takes_nothing_more(tmp_path):
    prepared = prepare(tmp_path)
    settings = read_settings([*SITE, "cluster.max_submit_jobs=2"], prepared.info.settings)
    run = prepared.run
    live = {f"12_{task}": JobState("RUNNING", "", "dcu1", 60, "12", run.path.name) for task in range(2)}
    with pytest.raises(
        SchedulerError, match=r"max_submit_jobs=2 allows no more .*; python -m jobs resume .* submits more"
    ):
        place_order(run, prepared.info, settings, [0, 1, 2], live, NOW)


def test_a_queue_that_does_not_answer_is_no_empty_queue(tmp_path, monkeypatch):
    run = prepare(tmp_path).run
    assert jobs_in_queue(run, lambda command: None) is None
    run.add_submission({"tasks": [{"job": "12_0", "shards": [0], "logs": []}]})
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/squeue")
    with pytest.raises(SchedulerError, match=r"would be submitted again; .*none of the jobs 12 is left, type: .*\| sb"):
        jobs_in_queue(run, lambda command: None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert jobs_in_queue(run, lambda command: None) is None, "there is no queue"


def test_a_rendered_array_has_parts_of_the_same_length(tmp_path):
    prepared = prepare(tmp_path, count=60)
    settings = read_settings([*SITE, "cards=2"], prepared.info.settings)
    assert parts_of(prepared.run, prepared.info, settings) == 15


@pytest.mark.parametrize(
    "limits", [["max_array_size=4"], ["max_submit_jobs=4"], ["max_array_size=9", "max_submit_jobs=4"]]
)
def test_a_site_that_takes_fewer_tasks_gets_longer_ones_in_a_rendered_array(tmp_path, limits):
    prepared = prepare(tmp_path, count=60)
    settings = read_settings([*SITE, *(f"cluster.{limit}" for limit in limits)], prepared.info.settings)
    assert parts_of(prepared.run, prepared.info, settings) == 4
