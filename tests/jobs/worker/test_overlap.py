"""A batch is written down while the next is sampled, and nothing that held without that is lost by it."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Callable, Dict, List, Optional

import pytest

from jobs.attendance import End
from jobs.records import read_records
from jobs.rundir import RunDir
from jobs.worker import rehearsal
from jobs.worker import worker as module
from jobs.worker.stop import Halt, Limits
from jobs.worker.worker import Picture, Worker, run_shard
from ldm.errors import OutputError
from tests.jobs.support import FakeModel, content, prepare, sha256

PATIENCE = 60.0  # seconds that a thread may take to get somewhere, on a busy machine


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return prepare(tmp_path, "images_per_shard=8", count=8).run


def worker(name: str = "one") -> Worker:
    return Worker(name=name, device="fake", batch_size=2)


def made(run: RunDir) -> List[int]:
    return sorted(read_records(run.records_path(0)).images)


def tried(run: RunDir, name: str = "one") -> List[int]:
    return sorted(
        index
        for session in read_records(run.records_path(0)).sessions
        if session.worker == name
        for index in session.trying
    )


def check_files(run: RunDir) -> None:
    """Every record describes the file that is there, and what was asked for is in it."""
    records = read_records(run.records_path(0)).images
    for image in run.shard(0).images:
        if image.index in records:
            data = run.image_path(image.file).read_bytes()
            assert data == content(image.request)
            assert records[image.index].sha256 == sha256(data)


class Stages:
    """A model whose sampling and encoding note when they are done, and wait where they are told to."""

    def __init__(self, before_sampling: Callable[[int], None], before_encoding: Callable[[str], None]) -> None:
        self.model = FakeModel()
        self._sampling, self._encoding = before_sampling, before_encoding

    def __call__(self, requests):
        self._sampling(len(self.model.batches))
        return [self._slowed(request, picture) for request, picture in zip(requests, self.model(requests))]

    def _slowed(self, request, picture: Picture) -> Picture:
        def encode() -> bytes:
            self._encoding(request.prompt)
            return content(request)

        return Picture(encode, picture.flagged, picture.seconds)


def nothing(_: object) -> None:
    """In the place of a stage that does not matter."""


def test_a_batch_is_encoded_and_written_while_the_next_is_sampled(run):
    second_begun, first_written = threading.Event(), threading.Event()

    def sample(batch: int) -> None:
        if batch == 1:
            second_begun.set()
            assert first_written.wait(PATIENCE), "the first batch was not written while the second was sampled"

    def encode(prompt: str) -> None:
        assert second_begun.wait(PATIENCE), "the second batch did not begin while the first was being written"

    def beat(count: int, failed: int) -> None:
        first_written.set()

    summary = run_shard(run.shard(0), run, Stages(sample, encode), Worker("one", "fake", 2, beat=beat))
    assert (summary.done, summary.made) == (True, 8)
    check_files(run)


def test_the_pictures_of_a_batch_are_encoded_side_by_side(run, monkeypatch):
    monkeypatch.setattr(module, "processors", lambda: 2)
    both_encode = threading.Barrier(2)

    def encode(prompt: str) -> None:
        both_encode.wait(PATIENCE)

    assert run_shard(run.shard(0), run, Stages(nothing, encode), worker()).done
    check_files(run)


def test_where_there_is_one_processor_one_picture_is_encoded_at_a_time(run, monkeypatch):
    monkeypatch.setattr(module, "processors", lambda: 1)
    encoding = threading.Lock()

    def encode(prompt: str) -> None:
        assert encoding.acquire(blocking=False)
        time.sleep(0.01)
        encoding.release()

    assert run_shard(run.shard(0), run, Stages(nothing, encode), worker()).done
    check_files(run)


def test_everything_is_on_the_disk_when_the_shard_returns(run):
    def slow(_: str) -> None:
        time.sleep(0.01)

    threads = threading.active_count()
    run_shard(run.shard(0), run, Stages(nothing, slow), worker())
    assert made(run) == list(range(8))
    assert tried(run) == []
    assert threading.active_count() == threads
    check_files(run)


def test_no_more_than_one_batch_waits_to_be_written(run):
    """Writing is slower than sampling: pictures in memory are those of the batch sampled and of the one written."""
    lock, living, most = threading.Lock(), Counter(), []

    def sampled(batch: int) -> None:
        with lock:
            living["sampled"] += 2
            most.append(living["sampled"] - living["written"])

    def slow(_: str) -> None:
        time.sleep(0.02)
        with lock:
            living["written"] += 1

    run_shard(run.shard(0), run, Stages(sampled, slow), worker())
    assert most[0] == 2
    assert max(most) <= 4


def test_batches_are_sampled_encoded_and_recorded_in_the_order_of_the_plan(run):
    encoded: List[str] = []
    run_shard(run.shard(0), run, Stages(nothing, encoded.append), worker())
    planned = [image.request.prompt for image in run.shard(0).images]
    assert [set(encoded[i : i + 2]) for i in range(0, 8, 2)] == [set(planned[i : i + 2]) for i in range(0, 8, 2)]
    assert list(read_records(run.records_path(0)).images) == list(range(8))


def failing_keep(monkeypatch, bad: Dict[int, Optional[threading.Event]]) -> None:
    """The disk refuses these pictures, once the event has come."""
    real = module.keep

    def keep(run, picture, data):
        if picture.index in bad:
            event = bad[picture.index]
            assert event is None or event.wait(PATIENCE)
            raise OutputError("cannot write it: No space left on device")
        return real(run, picture, data)

    monkeypatch.setattr(module, "keep", keep)


def test_a_full_disk_stops_the_worker_before_it_takes_up_another_batch(run, monkeypatch):
    """It fills while the second batch is sampled; that one, which is made by then, is still written."""
    second_begun = threading.Event()
    failing_keep(monkeypatch, {1: second_begun})
    model = Stages(lambda batch: second_begun.set() if batch == 1 else None, nothing)
    with pytest.raises(OutputError, match="No space left"):
        run_shard(run.shard(0), run, model, worker())
    assert len(model.model.batches) == 2
    assert made(run) == [0, 2, 3]
    check_files(run)
    monkeypatch.undo()
    again = FakeModel()
    assert run_shard(run.shard(0), run, again, worker("two")).done
    assert [batch[0] for batch in again.batches] == ["picture number 4", "picture number 6", "picture number 0"]
    check_files(run)


def test_a_full_disk_at_the_last_batch_is_no_success(run, monkeypatch):
    failing_keep(monkeypatch, {7: None})
    with pytest.raises(OutputError, match="No space left"):
        run_shard(run.shard(0), run, FakeModel(), worker())
    assert made(run) == [0, 1, 2, 3, 4, 5, 6]


def test_a_record_that_cannot_be_written_stops_the_worker(run, monkeypatch):
    def refuse(path, data):
        raise OutputError("cannot write the records: No space left on device")

    monkeypatch.setattr("jobs.records.write_atomically", refuse)
    model = FakeModel()
    with pytest.raises(OutputError, match="the records"):
        run_shard(run.shard(0), run, model, worker())
    assert model.batches == [], "found out before any card time was spent"


def test_an_error_of_the_disk_is_told_though_the_worker_is_stopped_meanwhile(run, monkeypatch):
    failing_keep(monkeypatch, {1: None})

    def stop(batch: int) -> None:
        if batch == 1:
            raise Halt(End.TOLD_TO_STOP, "SIGTERM came")

    with pytest.raises(OutputError, match="No space left"):
        run_shard(run.shard(0), run, Stages(stop, nothing), worker())
    assert made(run) == [0]


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_who_is_stopped_while_sampling_has_all_batches_before_written_and_recorded(run, batch):
    def stop(number: int) -> None:
        if number == batch:
            raise Halt(End.TOLD_TO_STOP, "SIGTERM came")

    def slow(_: str) -> None:
        time.sleep(0.02)

    with pytest.raises(Halt):
        run_shard(run.shard(0), run, Stages(stop, slow), worker())
    assert made(run) == list(range(2 * batch))
    assert tried(run) == []
    check_files(run)


def test_who_stops_between_batches_has_the_one_just_sampled_written(run, tmp_path):
    limits = Limits(pause_path=tmp_path / "pause", clock=iter(range(0, 1000, 10)).__next__)
    model = Stages(lambda batch: (tmp_path / "pause").touch(), nothing)
    with pytest.raises(Halt, match="is there"):
        run_shard(run.shard(0), run, model, worker(), limits)
    assert made(run) == [0, 1]
    check_files(run)


def test_a_model_that_breaks_leaves_the_batch_before_recorded_and_its_own_told_as_tried(run):
    def break_down(batch: int) -> None:
        if batch == 2:
            raise RuntimeError("HIP error: the card is lost")

    with pytest.raises(RuntimeError, match="the card is lost"):
        run_shard(run.shard(0), run, Stages(break_down, nothing), worker())
    assert made(run) == [0, 1, 2, 3]
    assert tried(run) == [4, 5]


def in_a_child(run: RunDir, name: str, model: Callable[..., object]) -> int:
    """The exit status of a process that works on the shard."""
    child = os.fork()
    if child == 0:
        try:
            run_shard(run.shard(0), run, model, worker(name))  # type: ignore[arg-type]
        finally:
            os._exit(1)
    return os.WEXITSTATUS(os.waitpid(child, 0)[1])


def test_who_is_killed_while_a_batch_is_written_leaves_two_to_be_made_and_word_that_it_died(run, monkeypatch):
    """The process dies in the third batch, before a picture of the second is written. It had written that it was at the
    second; the third is told as tried by whoever meets it next.
    """
    monkeypatch.setattr("jobs.records.FLUSH_SECONDS", 0.0)
    monkeypatch.setattr("jobs.records.FLUSH_SHARE", 0)
    read, write = os.pipe()

    def sample(batch: int) -> None:
        if batch == 2:
            os.read(read, 1)
            os._exit(9)

    def encode(prompt: str) -> None:
        if prompt == "picture number 2":
            os.write(write, b"x")
            time.sleep(PATIENCE)

    assert in_a_child(run, "one", Stages(sample, encode)) == 9
    assert made(run) == [0, 1]
    assert tried(run) == [2, 3]
    seen = []
    model = Stages(lambda batch: seen.append(tried(run, "two")), nothing)
    assert run_shard(run.shard(0), run, model, worker("two")).done
    assert seen == [[4, 5], [6, 7], [2, 3]]
    check_files(run)


@pytest.mark.parametrize("deadly", [0, 3, 7])
def test_a_picture_that_kills_is_found_in_whichever_batch_it_is_and_all_others_are_made(run, deadly):
    def sample_one(requests):
        if f"picture number {deadly}" in [request.prompt for request in requests]:
            os._exit(9)
        return FakeModel()(requests)

    for life in range(10):
        assert in_a_child(run, f"life {life}", sample_one) == 9
        if len(made(run)) == 7:
            break
    assert made(run) == [index for index in range(8) if index != deadly]


def test_where_a_worker_has_died_a_batch_is_written_before_the_next_begins(run):
    """So that what is told as tried is what kills, and nothing beside it."""

    def die(batch: int) -> None:
        raise RuntimeError("as if the process were gone")

    with pytest.raises(RuntimeError):
        run_shard(run.shard(0), run, Stages(die, nothing), worker())
    seen = []

    def look(batch: int) -> None:
        seen.append((made(run), tried(run, "two")))

    run_shard(run.shard(0), run, Stages(look, nothing), worker("two"))
    assert seen == [([], [2, 3]), ([2, 3], [4, 5]), ([2, 3, 4, 5], [6, 7]), ([2, 3, 4, 5, 6, 7], [0, 1])]


def test_a_rehearsal_overlaps_too(tmp_path, monkeypatch):
    threads = set()
    real = rehearsal._card

    def card(*words):
        threads.add(threading.current_thread())
        return real(*words)

    monkeypatch.setattr(rehearsal, "_card", card)
    run = prepare(tmp_path, "images_per_shard=8", count=8).run
    assert run_shard(run.shard(0), run, rehearsal.generate, worker()).done
    assert threads
    assert threading.current_thread() not in threads


def test_overlapping_changes_no_byte(tmp_path):
    """The same run with every batch written before the next, as beside another worker."""
    runs = [prepare(tmp_path / name, "images_per_shard=8", count=8).run for name in ("a", "b")]
    run_shard(runs[0].shard(0), runs[0], rehearsal.generate, worker())
    with pytest.raises(RuntimeError):
        run_shard(runs[1].shard(0), runs[1], lambda requests: os_error(), worker("dead"))
    run_shard(runs[1].shard(0), runs[1], rehearsal.generate, worker())
    one, other = ([run.image_path(image.file).read_bytes() for image in run.shard(0).images] for run in runs)
    assert one == other


def os_error() -> List[Picture]:
    raise RuntimeError("the card is lost")
