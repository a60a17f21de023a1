"""Records are whole at every moment, survive two writers and torn files, and tell when a shard is done."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Sequence

import pytest

from jobs.plan import planned_images
from jobs.records import Failure, RecordBook, read_records, read_summary, without_file
from jobs.spec import Shard
from ldm.errors import OutputError, RunError
from ldm.inference.spec import GenerationRequest, ImageRecord

SHARD = Shard(0, tuple(planned_images([GenerationRequest(prompt="a", seed=seed) for seed in range(3)], 3)))


def record(index: int, **changes: object) -> ImageRecord:
    image = SHARD.images[index]
    plain = ImageRecord(
        index=index,
        request_id=image.request_id,
        file=image.file,
        sha256="ab" * 32,
        prompt=image.request.prompt,
        seed=image.request.seed,
        flagged=False,
        seconds=0.5,
        device="fake",
        worker="one",
    )
    return dataclasses.replace(plain, **changes)


def failure(index: int, attempts: int = 1) -> Failure:
    return Failure(index, SHARD.images[index].request_id, "no picture", "one", attempts)


def fail(writing: RecordBook, index: int) -> None:
    writing.fail(SHARD.images[index], "no picture")


def book(path: Path, worker: str = "one", times: Sequence[float] = ()) -> RecordBook:
    """A book whose clock shows `times`, then ten seconds more at each look."""
    clock = itertools.chain(times, itertools.count(1000.0, 10.0))
    return RecordBook(path, SHARD, worker=worker, device="fake", clock=lambda: next(clock))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "records" / "shard-00000.jsonl"


def test_what_was_added_is_read_back(path):
    writing = book(path)
    writing.add(record(0))
    writing.add(record(1, flagged=True))
    fail(writing, 2)
    summary = writing.flush(at_once=True)
    records = read_records(path)
    assert records.images == {0: record(0), 1: record(1, flagged=True)}
    assert records.failures == {2: failure(2)}
    assert summary == read_summary(path)
    assert (summary.done, summary.made, summary.flagged, summary.failed) == (False, 2, 1, 1)


def test_the_last_line_says_the_shard_is_done(path):
    writing = book(path)
    for index in range(3):
        writing.add(record(index))
    writing.flush(at_once=True)
    last = json.loads(path.read_text().splitlines()[-1])
    assert (last["shard"], last["done"], last["made"]) == (0, True, 3)


def test_lines_stand_in_the_order_of_the_plan(path):
    writing = book(path)
    for index in (2, 0, 1):
        writing.add(record(index))
    writing.flush(at_once=True)
    assert [json.loads(line).get("index") for line in path.read_text().splitlines()] == [0, 1, 2, None]


def test_flushes_within_a_second_are_saved_up(path):
    writing = book(path, times=[100.0, 100.0, 100.5, 100.9, 101.6])
    writing.add(record(0))
    assert writing.flush() is not None
    writing.add(record(1))
    assert writing.flush() is None
    assert read_records(path).images == {0: record(0)}
    assert writing.flush() is not None
    assert read_records(path).images == {0: record(0), 1: record(1)}


def test_two_workers_of_one_shard_keep_what_the_other_wrote(path):
    first, second = book(path, "one"), book(path, "two")
    first.add(record(0))
    second.add(record(1, worker="two"))
    first.flush(at_once=True)
    second.flush(at_once=True)
    first.add(record(2))
    summary = first.flush(at_once=True)
    assert summary is not None
    assert summary.done
    assert read_records(path).images == {0: record(0), 1: record(1, worker="two"), 2: record(2)}
    assert [session.worker for session in summary.sessions] == ["two", "one"]
    assert [session.made for session in summary.sessions] == [1, 2]


def test_a_picture_that_was_made_after_all_has_failed_no_more(path):
    first = book(path)
    fail(first, 0)
    first.flush(at_once=True)
    second = book(path, "two")
    second.add(record(0))
    summary = second.flush(at_once=True)
    assert summary is not None
    assert summary.failed == 0
    assert read_records(path).failures == {}


def test_a_failure_does_not_undo_a_picture_that_another_worker_made(path):
    first, second = book(path), book(path, "two")
    first.add(record(0))
    first.flush(at_once=True)
    fail(second, 0)
    second.flush(at_once=True)
    assert read_records(path).images == {0: record(0)}
    assert read_records(path).failures == {}


def test_a_picture_to_be_remade_counts_as_missing_until_then(path):
    first = book(path)
    for index in range(3):
        first.add(record(index))
    first.flush(at_once=True)
    second = book(path, "two")
    second.remake([1])
    summary = second.flush(at_once=True)
    assert summary is not None
    assert (summary.done, summary.made) == (False, 2)
    second.add(record(1))
    summary = second.flush(at_once=True)
    assert summary is not None
    assert (summary.done, summary.made) == (True, 3)


def test_a_picture_that_is_remade_by_another_worker_counts(path):
    writing = book(path)
    for index in range(3):
        writing.add(record(index))
    writing.flush(at_once=True)
    first, second = book(path, "two"), book(path, "three")
    first.remake([1])
    second.remake([1])
    second.add(record(1, worker="three"))
    second.flush(at_once=True)
    first.flush(at_once=True)
    assert first.known.images[1].worker == "three"


def test_a_record_once_seen_outlives_a_third_worker_that_has_not_seen_it(path):
    first, second = book(path), book(path, "two")
    second.add(record(2, worker="two"))
    second.flush(at_once=True)
    first.flush(at_once=True)
    path.unlink()
    book(path, "three").flush(at_once=True)
    first.flush(at_once=True)
    assert read_records(path).images == {2: record(2, worker="two")}


def test_companions_are_those_who_write_beside_and_not_those_who_wrote_before(path):
    earlier = book(path, "earlier")
    earlier.flush(at_once=True)
    own = book(path, "own")
    own.flush(at_once=True)
    assert own.companions() == []
    book(path, "other").flush(at_once=True)
    own.flush(at_once=True)
    assert own.companions() == ["other"]
    earlier.flush(at_once=True)
    own.flush(at_once=True)
    assert sorted(own.companions()) == ["earlier", "other"]


@pytest.mark.parametrize("keep", range(0, 700, 50))
def test_a_file_cut_anywhere_loses_lines_but_never_reads_wrong(path, keep):
    writing = book(path)
    for index in range(3):
        writing.add(record(index))
    writing.flush(at_once=True)
    whole = path.read_bytes()
    path.write_bytes(whole[:keep])
    assert read_records(path).images.items() <= {index: record(index) for index in range(3)}.items()
    assert read_summary(path) is None


def test_lines_of_another_program_are_passed_over(path):
    path.parent.mkdir()
    path.write_bytes(b'\xff\xfe\n[]\n{"sha256": 1}\n{"error": 1}\n{"sessions": 5}\nnot json\n')
    assert read_records(path).images == {}
    assert read_summary(path) is None


def test_no_file_is_no_records(path):
    assert read_records(path).images == {}
    assert read_summary(path) is None


def test_a_file_that_cannot_be_read_is_an_error(path):
    path.mkdir(parents=True)
    with pytest.raises(RunError, match="Is a directory"):
        read_records(path)
    with pytest.raises(RunError, match="Is a directory"):
        read_summary(path)


def test_a_full_disk_is_an_error_and_leaves_the_former_records(path, monkeypatch):
    writing = book(path)
    writing.add(record(0))
    writing.flush(at_once=True)
    writing.add(record(1))

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ldm.inference.files.os.fsync", no_space)
    with pytest.raises(OutputError, match=r"cannot write .*No space left on device; free some space"):
        writing.flush(at_once=True)
    assert read_records(path).images == {0: record(0)}
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_the_summary_is_found_behind_long_lines(path):
    writing = book(path)
    writing.add(record(0, prompt="x" * 200_000))
    writing.flush(at_once=True)
    summary = read_summary(path)
    assert summary is not None
    assert summary.made == 1


def test_a_failure_counts_those_before_it(path):
    for attempts in (1, 2, 3):
        writing = book(path)
        fail(writing, 2)
        writing.leave()
        assert read_records(path).failures == {2: failure(2, attempts)}
    assert failure(2, 3).quarantined
    assert not failure(2, 2).quarantined


def test_a_shard_whose_failures_are_given_up_is_done(path):
    writing = book(path)
    for index in (0, 1):
        writing.add(record(index))
    for done in (False, False, True):
        fail(writing, 2)
        summary = writing.leave()
        assert summary.done is done
        assert without_file(read_records(path)) == ({2} if done else set())
        writing = book(path)


def test_a_slow_disk_is_written_to_less_often(path):
    """A writing of 3 s is followed by a pause of 150 s."""
    writing = book(path, times=[0.0, 0.0, 10.0, 13.0, 100.0, 164.0, 165.0])
    writing.add(record(0))
    assert writing.flush() is not None
    assert writing.flush() is None
    assert writing.flush() is not None


def test_who_tries_what_is_there_once_a_worker_has_died_here(path):
    first = book(path)
    first.begin([0, 1])
    first.flush(at_once=True)
    second = book(path, "two")
    assert second.deaths() == {0: 1, 1: 1}
    second.begin([2])
    second.flush()
    assert {session.worker: session.trying for session in read_records(path).sessions} == {"one": (0, 1), "two": (2,)}
    second.leave()
    third = book(path, "three")
    assert third.deaths() == {0: 1, 1: 1}
    third.add(record(0))
    third.flush(at_once=True)
    assert third.deaths() == {1: 1}, "what is made has killed nobody"


def test_what_a_companion_takes_away_with_its_last_writing_is_written_again(path, monkeypatch):
    """It read before this one wrote, and writes after it, and is gone."""
    first, other = book(path), book(path, "two")
    other.add(record(1))
    other.flush(at_once=True)
    before = path.read_bytes()
    first.add(record(0))
    first.flush(at_once=True)
    monkeypatch.setattr("jobs.records.time.sleep", lambda seconds: path.write_bytes(before))
    monkeypatch.setattr("jobs.records.LAST_LOOKS", 1)
    first.leave()
    assert sorted(read_records(path).images) == [0, 1]


def test_the_last_line_stays_short_however_often_a_shard_was_begun(path):
    for number in range(600):
        writing = book(path, f"dcu{number % 7}/12345_678/{number}")
        writing.begin(range(3))
        writing.flush(at_once=True)
    summary = read_summary(path)
    assert len(summary.sessions) <= 51
    assert summary.sessions[0].worker == "earlier sessions"
    spent = [each.updated - each.started for each in summary.sessions]
    assert sum(spent) == pytest.approx(600 * spent[-1], rel=0.01), "no time is lost"
    assert "earlier sessions" not in writing.companions(), "nobody of this name is at work"
