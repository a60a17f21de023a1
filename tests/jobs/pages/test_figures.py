"""Who was slow, who failed and who was at work when, by worker and by node."""

from __future__ import annotations

from array import array

import pytest

from jobs.attendance import Attendance, End
from jobs.pages.figures import merged, node_figures, quantile, spread, worker_figures
from jobs.pages.plots import Axis, round_values, seconds_axis, time_axis
from jobs.records import Session
from jobs.state.survey import Survey

NOW = 10_000.0


def survey(seconds: dict[str, list[float]]) -> Survey:
    """A run in which each worker made its pictures one behind the other, numbered in this order."""
    found = Survey(seconds={name: array("d", values) for name, values in seconds.items()})
    start = 0
    for name, values in seconds.items():
        found.indices[name] = array("q", range(start, start + len(values)))
        found.sessions.append(Session(name, "a card", 100.0, 100.0 + sum(values), len(values)))
        start += len(values)
    return found


def attendance(worker: str, **changes: object) -> Attendance:
    values = {
        "worker": worker, "host": worker.split("/")[0], "job": "7", "task": "0", "rank": 0, "pid": 1, "card": "0",
        "shards": (0,), "started": 100.0, "updated": 200.0, **changes,
    }  # fmt: skip
    return Attendance(**values)


def figures(found: Survey, *attendances: Attendance, efforts: list[float] | None = None):
    count = sum(map(len, found.seconds.values()))
    workers = worker_figures(found, attendances, efforts or [1.0] * count, lambda: NOW)
    return {each.name: each for each in workers}


@pytest.mark.parametrize(("share", "value"), [(0.0, 1.0), (0.5, 2.5), (1.0, 4.0), (0.25, 1.75)])
def test_a_quantile_lies_between_two_values_by_proportion(share, value):
    assert quantile([1.0, 2.0, 3.0, 4.0], share) == value


def test_the_spread_of_nothing_is_nothing():
    assert spread([]) is None
    assert spread([3.0, 1.0, 2.0]).p50 == 2.0


def test_the_slow_worker_comes_first_and_is_called_slow():
    found = figures(survey({"a/1": [1.0] * 9, "b/1": [2.0] * 5, "c/1": [1.1] * 9}))
    assert list(found) == ["b/1", "c/1", "a/1"]
    assert [each.is_straggler for each in found.values()] == [True, False, False]
    assert found["b/1"].pace == pytest.approx(2.0 / 1.1)


def test_who_was_given_the_larger_pictures_is_not_slow():
    found = figures(survey({"a/1": [1.0] * 9, "b/1": [2.0] * 5}), efforts=[10.0] * 9 + [20.0] * 5)
    assert [each.pace for each in found.values()] == [1.0, 1.0]


def test_few_pictures_make_nobody_slow():
    assert not figures(survey({"a/1": [1.0] * 9, "b/1": [9.0] * 3}))["b/1"].is_straggler


@pytest.mark.parametrize(
    ("changes", "ended", "errors"),
    [
        ({"end": End.DONE, "ended": 180.0}, "done", 0),
        ({"end": End.ERROR, "ended": 180.0, "message": "the card is lost"}, "error", 1),
        ({"updated": NOW - 10}, "at work", 0),
        ({"updated": NOW - 1000}, "no last word", 0),
    ],
)
def test_it_is_said_how_a_worker_ended(changes, ended, errors):
    found = figures(survey({"a/1": [1.0]}), attendance("a/1", **changes))["a/1"]
    assert (found.ended, found.errors, found.message) == (ended, errors, changes.get("message", ""))


def test_a_worker_that_made_nothing_is_there_too():
    found = figures(survey({"a/1": [1.0]}), attendance("b/2", end=End.ERROR, ended=150.0, message="no weights"))
    assert (found["b/2"].made, found["b/2"].seconds, found["b/2"].pace) == (0, None, None)
    assert found["b/2"].hours == pytest.approx(100 / 3600)


def test_a_node_is_its_workers_together():
    seen = survey({"a/1": [1.0] * 9, "a/2": [1.0] * 3, "b/1": [3.0] * 4})
    efforts = [1.0] * 16
    workers = worker_figures(seen, [attendance("a/2", end=End.ERROR, message="lost")], efforts, lambda: NOW)
    slow, usual = node_figures(seen, workers, efforts)
    assert (slow.name, slow.is_straggler, slow.made) == ("b", True, 4)
    assert (usual.name, usual.workers, usual.made, usual.errors, usual.message) == ("a", 2, 12, 1, "lost")
    assert usual.ended == "1 error"


def test_intervals_that_touch_become_one():
    assert merged([(5, 6), (0, 2), (2.5, 3), (1, 2)], gap=0.5) == ((0, 3), (5, 6))


def test_an_axis_says_where_a_value_stands_and_keeps_it_on_the_axis():
    axis = Axis(10.0, 20.0, ())
    assert [axis.at(value) for value in (5, 10, 15, 99)] == ["0.00%", "0.00%", "50.00%", "100.00%"]
    assert (axis.span(10, 15), axis.span(12, 12)) == ("50.00%", "0.30%")


@pytest.mark.parametrize(
    ("end", "values"), [(9.0, (0, 2, 4, 6, 8)), (0.9, (0, 0.2, 0.4, 0.6, 0.8)), (120.0, (0, 50, 100))]
)
def test_an_axis_has_round_values(end, values):
    assert round_values(end) == pytest.approx(values)


def test_one_picture_that_took_for_ever_does_not_shrink_all_others():
    rows = list(figures(survey({"a/1": [1.0] * 200 + [500.0]})).values())
    assert seconds_axis(rows).end < 5
    assert seconds_axis([]).end == 1.0


def test_the_clock_starts_with_the_first_worker():
    rows = list(figures(survey({"a/1": [60.0] * 10})).values())
    assert time_axis(rows) == Axis(100.0, 700.0, (100.0, 220.0, 340.0, 460.0, 580.0, 700.0))
