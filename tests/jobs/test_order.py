"""What is started, for which price and where not, follows from the run's own files and what Slurm says."""

from __future__ import annotations

import pytest

from jobs import order as module
from jobs.attendance import End
from jobs.config import read_settings
from jobs.order import forecast, parts_of, place_order
from tests.jobs.crew import attended
from tests.jobs.support import prepare

SITE = "cluster=scnet-dcu", "cluster.price_per_card_hour=2", "cluster.currency=yuan"


@pytest.fixture(autouse=True)
def quiet_slurm(monkeypatch):
    monkeypatch.setattr(module, "expected_start", lambda directives: None)


def ordered(prepared, *words: str):
    settings = read_settings([*SITE, *words], prepared.info.settings)
    shards = range(prepared.info.plan.shards)
    order = place_order(prepared.run, prepared.info, settings, shards, {})
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
    order, _ = ordered(prepare(tmp_path), "requeue=false", "seconds_per_image=3600", "time_limit_min=60")
    assert order.links == 3


def test_a_node_on_which_everything_fails_is_left_out_and_named(tmp_path, caplog):
    prepared = prepare(tmp_path)

    def leave(host: str, minute: int, end: End) -> None:
        then = 60.0 * minute
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


def test_a_rendered_array_has_parts_of_the_same_length(tmp_path):
    prepared = prepare(tmp_path, count=60)
    settings = read_settings([*SITE, "cards=2"], prepared.info.settings)
    assert parts_of(prepared.run, prepared.info, settings) == 15
