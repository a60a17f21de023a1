"""The report of a run is told by its files alone, at any moment, and points at what went wrong."""

from __future__ import annotations

import dataclasses

import pytest

from jobs.records import Session
from jobs.state.report import format_report, make_report, rate
from jobs.worker.worker import Worker, run_shard
from tests.jobs.support import FakeModel, prepare

WORKER = Worker(name="one", device="fake", batch_size=2)


def session(started: float, updated: float, made: int) -> Session:
    return Session(worker="one", device="fake", started=started, updated=updated, made=made)


def test_a_run_that_was_only_planned_misses_everything(tmp_path):
    prepared = prepare(tmp_path)
    report = make_report(prepared.run, prepared.info)
    assert (report.planned, report.done, report.flagged, report.failed, report.missing) == (6, 0, 0, 0, 6)
    assert report.images_per_second is None
    assert format_report(report) == [
        "0 of 6 pictures done (0 %), 0 flagged, 0 failed, 6 missing",
        "no picture yet, 0.00 card-hours",
    ]


def test_everything_is_counted(tmp_path):
    prepared = prepare(tmp_path)
    model = FakeModel(fail=["picture number 1"], flag=["picture number 2"], drop=["picture number 3"])
    for shard in (0, 1):
        run_shard(prepared.run.shard(shard), prepared.run, model, WORKER)
    report = make_report(prepared.run, prepared.info)
    assert (report.planned, report.done, report.flagged, report.failed, report.missing) == (6, 3, 2, 1, 2)
    assert report.failures == ("picture 1: no picture of 'picture number 1'",)
    assert "3 of 6 pictures done (50 %), 2 flagged, 1 failed, 2 missing" in format_report(report)
    assert "failed: picture 1: no picture of 'picture number 1'" in format_report(report)


@pytest.mark.parametrize(
    ("sessions", "expected"),
    [
        ([], None),
        ([session(0, 10, 0)], None),
        ([session(0, 10, 20)], 2.0),
        ([session(0, 10, 20), session(0, 10, 20)], 4.0),
        ([session(0, 10, 20), session(5, 15, 10)], 2.0),
        ([session(0, 10, 20), session(2, 5, 10)], 3.0),
        ([session(1000, 1010, 10), session(0, 10, 10)], 1.0),
    ],
    ids=["none", "nothing made", "one", "side by side", "overlapping", "within", "a night between"],
)
def test_the_rate_counts_the_time_in_which_somebody_was_at_work(sessions, expected):
    assert rate(sessions) == (None if expected is None else pytest.approx(expected))


def test_card_hours_are_those_of_all_workers(tmp_path):
    prepared = prepare(tmp_path, "cluster.price_per_card_hour=1.5")
    run_shard(prepared.run.shard(0), prepared.run, FakeModel(), WORKER)
    path = prepared.run.records_path(0)
    text = path.read_text()
    started = text.split('"started":')[1].split(",")[0]
    updated = text.split('"updated":')[1].split(",")[0]
    path.write_text(text.replace(f'"started":{started}', '"started":0.0').replace(f":{updated}", ":7200.0"))
    report = make_report(prepared.run, prepared.info)
    assert report.card_hours == pytest.approx(2.0)
    assert report.cost == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("rate", "text"),
    [(None, "no picture yet"), (2.5, "2.50 images/s"), (0.1, "0.10 images/s"), (0.04, "25 s an image")],
)
def test_a_slow_rate_is_given_as_time(tmp_path, rate, text):
    prepared = prepare(tmp_path)
    report = dataclasses.replace(make_report(prepared.run, prepared.info), images_per_second=rate)
    assert format_report(report)[1].startswith(text)


def note(prepared, shards: list[int], *logs: str) -> None:
    prepared.run.add_submission({"tasks": [{"job": "1_0", "shards": shards, "logs": list(logs)}]})


def test_a_shard_whose_log_ends_badly_is_shown_with_its_last_lines(tmp_path):
    prepared = prepare(tmp_path)
    note(prepared, [0, 1], "1_0_0_log.out", "1_0_1_log.out")
    (prepared.run.logs / "1_0_0_log.out").write_text("going on well\n")
    lines = "".join(f"line {number}\n" for number in range(2000))
    (prepared.run.logs / "1_0_1_log.out").write_text(f"{lines}slurmstepd: error: *** STEP 1.0 CANCELLED ***\n\n")
    report = make_report(prepared.run, prepared.info)
    [trouble] = report.troubles
    assert (trouble.shards, trouble.log.endswith("logs/1_0_1_log.out")) == ((1,), True)
    assert trouble.lines[-2:] == ("line 1999", "slurmstepd: error: *** STEP 1.0 CANCELLED ***")
    assert "    line 1999" in format_report(report)


def test_shards_with_one_log_are_one_trouble(tmp_path):
    prepared = prepare(tmp_path)
    note(prepared, [0, 1, 2], "here.log")
    (prepared.run.logs / "here.log").write_text("jobs: error: no weights\n")
    lines = format_report(make_report(prepared.run, prepared.info))
    assert f"shards 0-2 are not done; {prepared.run.logs / 'here.log'} ends with" in lines
    assert lines.count("    jobs: error: no weights") == 1


def test_a_price_gives_the_cost(tmp_path):
    prepared = prepare(tmp_path, "cluster.price_per_card_hour=1.5")
    report = dataclasses.replace(make_report(prepared.run, prepared.info), card_hours=2.0)
    assert report.cost == 0.0
    assert format_report(dataclasses.replace(report, cost=3.0))[1] == "no picture yet, 2.00 card-hours, cost 3.00"


def test_the_last_submission_of_a_shard_counts(tmp_path):
    prepared = prepare(tmp_path)
    (prepared.run.logs / "old.out").write_text("Traceback\n")
    (prepared.run.logs / "new.out").write_text("going on well\n")
    note(prepared, [0], "old.out")
    note(prepared, [0], "new.out")
    assert make_report(prepared.run, prepared.info).troubles == ()


def test_a_shard_that_got_done_is_no_trouble_whatever_its_log_says(tmp_path):
    prepared = prepare(tmp_path)
    note(prepared, [0], "1.out")
    (prepared.run.logs / "1.out").write_text("error\n")
    run_shard(prepared.run.shard(0), prepared.run, FakeModel(), WORKER)
    assert make_report(prepared.run, prepared.info).troubles == ()


def test_a_log_that_is_not_there_yet_is_no_trouble(tmp_path):
    prepared = prepare(tmp_path)
    note(prepared, [0], "missing.out")
    assert make_report(prepared.run, prepared.info).troubles == ()


def test_records_that_are_torn_count_as_missing(tmp_path):
    prepared = prepare(tmp_path)
    run_shard(prepared.run.shard(0), prepared.run, FakeModel(), WORKER)
    path = prepared.run.records_path(0)
    path.write_bytes(path.read_bytes()[:-30])
    assert make_report(prepared.run, prepared.info).missing == 6
