"""A worker makes each picture once, whatever fails, dies or runs beside it, and writes down what stands on the disk."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from jobs.records import read_records, read_summary
from jobs.rundir import RunDir
from jobs.worker.worker import Worker, batches, run_shard
from ldm.errors import DeviceError, GenerationError, NoMemoryError, OutputError, RequestError
from ldm.inference.models import PROJECT_ROOT
from tests.jobs.support import FakeModel, content, prepare, sha256

ALL = "images_per_shard=6"


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return prepare(tmp_path, ALL).run


def one() -> Worker:
    return Worker(name="one", device="fake", batch_size=2)


def paths(run: RunDir) -> dict[str, Path]:
    return {path.name: path for path in (run.path / "samples").rglob("*") if path.is_file()}


def files(run: RunDir) -> dict[str, bytes]:
    return {name: path.read_bytes() for name, path in paths(run).items()}


def expected(run: RunDir) -> dict[str, bytes]:
    return {Path(image.file).name: content(image.request) for image in run.shard(0).images}


def test_every_picture_is_made_and_recorded(run):
    summary = run_shard(run.shard(0), run, FakeModel(), one())
    assert files(run) == expected(run)
    assert (summary.done, summary.made, summary.failed) == (True, 6, 0)
    records = read_records(run.records_path(0)).images
    for image in run.shard(0).images:
        record = records[image.index]
        assert (record.request_id, record.file, record.prompt) == (image.request_id, image.file, image.request.prompt)
        assert record.sha256 == sha256(content(image.request))
        assert (record.device, record.worker, record.seconds) == ("fake", "one", 0.5)


def test_pictures_come_in_batches(run):
    model = FakeModel()
    run_shard(run.shard(0), run, model, Worker("one", "fake", batch_size=4))
    assert [len(batch) for batch in model.batches] == [4, 2]


def test_a_second_time_makes_nothing(run):
    run_shard(run.shard(0), run, FakeModel(), one())
    before = files(run)
    model = FakeModel()
    assert run_shard(run.shard(0), run, model, one()).done
    assert model.batches == []
    assert files(run) == before


def test_a_lost_file_is_made_again_in_its_batch_and_no_other_is_touched(run):
    run_shard(run.shard(0), run, FakeModel(), one())
    (run.path / "samples/000/000003.png").unlink()
    written = {name: path.stat().st_mtime_ns for name, path in paths(run).items()}
    model = FakeModel()
    run_shard(run.shard(0), run, model, one())
    assert model.batches == [["picture number 2", "picture number 3"]], "the batch it was made in, for the same bytes"
    assert files(run) == expected(run)
    assert written.items() <= {name: path.stat().st_mtime_ns for name, path in paths(run).items()}.items()


def test_lost_records_are_made_again_for_the_files_that_stay(run):
    run_shard(run.shard(0), run, FakeModel(), one())
    run.records_path(0).unlink()
    assert run_shard(run.shard(0), run, FakeModel(), one()).done
    assert files(run) == expected(run)


def test_torn_records_cost_only_the_pictures_whose_lines_are_lost(run):
    run_shard(run.shard(0), run, FakeModel(), one())
    lines = run.records_path(0).read_bytes().splitlines(keepends=True)
    run.records_path(0).write_bytes(b"".join(lines[:4]) + lines[4][:20])
    model = FakeModel()
    assert run_shard(run.shard(0), run, model, one()).done
    assert model.batches == [["picture number 4", "picture number 5"]]


def test_a_record_of_another_plan_does_not_count(tmp_path, run):
    other = prepare(tmp_path, ALL, "steps=2").run
    run_shard(run.shard(0), run, FakeModel(), one())
    other.records_path(0).write_bytes(run.records_path(0).read_bytes())
    model = FakeModel()
    run_shard(other.shard(0), other, model, one())
    assert sum(len(batch) for batch in model.batches) == 6


def test_a_picture_that_fails_is_recorded_and_the_others_are_made(run):
    summary = run_shard(run.shard(0), run, FakeModel(fail=["picture number 2"]), one())
    assert (summary.done, summary.made, summary.failed) == (False, 5, 1)
    failures = read_records(run.records_path(0)).failures
    assert [(failure.index, failure.error) for failure in failures.values()] == [
        (2, "no picture of 'picture number 2'")
    ]
    assert sorted(files(run)) == [f"00000{index}.png" for index in (0, 1, 3, 4, 5)]


def test_a_failed_picture_is_tried_again_by_the_next_run(run):
    run_shard(run.shard(0), run, FakeModel(fail=["picture number 2"]), one())
    model = FakeModel()
    assert run_shard(run.shard(0), run, model, one()).done
    assert model.batches == [["picture number 2"]]


def test_a_picture_that_fails_three_times_is_left_alone_and_the_shard_is_done(run):
    for attempt in (1, 2, 3):
        summary = run_shard(run.shard(0), run, FakeModel(fail=["picture number 2"]), one())
        assert (summary.done, summary.failed) == (attempt == 3, 1)
        assert read_records(run.records_path(0)).failures[2].attempts == attempt
    model = FakeModel()
    assert run_shard(run.shard(0), run, model, one()).done
    assert model.batches == []


def test_a_model_may_give_the_reason_in_the_place_of_one_picture(run):
    def generate(requests):
        return [
            GenerationError("blank") if request.prompt == "picture number 2" else FakeModel()([request])[0]
            for request in requests
        ]

    summary = run_shard(run.shard(0), run, generate, one())
    assert (summary.made, summary.failed) == (5, 1)
    assert read_records(run.records_path(0)).failures[2].error == "blank"


def test_a_batch_that_does_not_fit_is_halved_and_the_worker_remembers(run):
    model, asked = FakeModel(), []

    def small(requests):
        asked.append(len(requests))
        if len(requests) > 1:
            raise NoMemoryError("out of memory")
        return model(requests)

    worker = Worker("one", "fake", batch_size=4)
    assert run_shard(run.shard(0), run, small, worker).done
    assert asked == [4, 2, 1, 1, 1, 1, 1, 1]
    assert files(run) == expected(run)


def test_who_samples_fewer_at_once_than_was_planned_cuts_the_same_batches(run):
    model = FakeModel()
    run_shard(run.shard(0), run, model, Worker("one", "fake", batch_size=4, room=3))
    assert [len(batch) for batch in model.batches] == [3, 1, 2]


def test_a_picture_that_does_not_fit_alone_fails_with_that_reason(run):
    def none(requests):
        raise NoMemoryError("out of memory; smaller pictures are needed")

    summary = run_shard(run.shard(0), run, none, one())
    assert (summary.made, summary.failed) == (0, 6)


def test_a_note_of_the_model_stands_in_the_record(run):
    def generate(requests):
        return [dataclasses.replace(picture, note="made in float32") for picture in FakeModel()(requests)]

    run_shard(run.shard(0), run, generate, one())
    assert {record.note for record in read_records(run.records_path(0)).images.values()} == {"made in float32"}


def test_pictures_at_which_a_worker_died_come_last(run):
    """They may have killed it, and the others are to be made in any case."""

    def die(requests):
        raise RuntimeError("as if the process were gone")

    with pytest.raises(RuntimeError):
        run_shard(run.shard(0), run, die, one())
    model = FakeModel()
    assert run_shard(run.shard(0), run, model, Worker("two", "fake", batch_size=2)).done
    assert [batch[0] for batch in model.batches] == ["picture number 2", "picture number 4", "picture number 0"]


def test_a_picture_that_kills_every_process_stops_no_other(tmp_path):
    """Real processes, gone without a word; its batch is taken apart once it has killed three of them."""
    run = prepare(tmp_path, "images_per_shard=6").run

    def deadly(requests):
        if "picture number 2" in [request.prompt for request in requests]:
            os._exit(9)
        return FakeModel()(requests)

    for life in range(10):
        child = os.fork()
        if child == 0:
            run_shard(run.shard(0), run, deadly, Worker(f"life {life}", "fake", batch_size=2))
            os._exit(0)
        assert os.WEXITSTATUS(os.waitpid(child, 0)[1]) == 9
        if len(read_records(run.records_path(0)).images) == 5:
            break
    assert sorted(read_records(run.records_path(0)).images) == [0, 1, 3, 4, 5]


def test_after_a_crash_what_was_made_is_recorded(run):
    model = FakeModel()

    def die_later(requests):
        if model.batches:
            raise RuntimeError("HIP error: the card is lost")
        return model(requests)

    with pytest.raises(RuntimeError, match="the card is lost"):
        run_shard(run.shard(0), run, die_later, one())
    assert sorted(read_records(run.records_path(0)).images) == [0, 1]


def test_a_beat_is_given_behind_each_batch(run):
    beats = []
    worker = Worker("one", "fake", batch_size=4, beat=lambda made, failed: beats.append((made, failed)))
    run_shard(run.shard(0), run, FakeModel(fail=["picture number 5"]), worker)
    assert beats == [(4, 0), (1, 1)]


def test_a_request_that_the_model_refuses_fails_alone(run):
    model = FakeModel()

    def refuse(requests):
        if any(request.prompt == "picture number 0" for request in requests):
            raise RequestError("the init image is gone")
        return model(requests)

    summary = run_shard(run.shard(0), run, refuse, one())
    assert (summary.made, summary.failed) == (5, 1)


def test_a_request_whose_parameters_fit_into_no_file_fails_alone(run):
    model = FakeModel()

    def generate(requests):
        return [
            dataclasses.replace(picture, encode=too_long) if request.prompt == "picture number 2" else picture
            for request, picture in zip(requests, model(requests))
        ]

    summary = run_shard(run.shard(0), run, generate, one())
    assert (summary.made, summary.failed) == (5, 1)
    assert read_records(run.records_path(0)).failures[2].error == "the parameters must fit into a JPEG"
    assert len(model.batches) == 3, "nothing is sampled again"


def too_long() -> bytes:
    raise RequestError("the parameters must fit into a JPEG")


def test_what_concerns_every_picture_ends_the_worker(run):
    def lose_the_card(requests):
        raise DeviceError("the card is gone")

    with pytest.raises(DeviceError, match="the card is gone"):
        run_shard(run.shard(0), run, lose_the_card, one())


def test_flagged_pictures_are_counted_and_dropped_ones_leave_no_file(run):
    model = FakeModel(flag=["picture number 1"], drop=["picture number 4"])
    summary = run_shard(run.shard(0), run, model, one())
    assert (summary.done, summary.made, summary.flagged) == (True, 6, 2)
    records = read_records(run.records_path(0)).images
    assert (records[4].file, records[4].sha256, records[4].flagged) == ("", "", True)
    assert "000004.png" not in files(run)
    again = FakeModel()
    run_shard(run.shard(0), run, again, one())
    assert again.batches == []


def test_of_two_workers_the_first_file_stays_and_both_records_describe_it(run):
    image = run.shard(0).images[0]
    path = run.image_path(image.file)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"made on another card, so not byte for byte the same")
    run_shard(run.shard(0), run, FakeModel(), one())
    assert path.read_bytes() == b"made on another card, so not byte for byte the same"
    assert read_records(run.records_path(0)).images[0].sha256 == sha256(path.read_bytes())


@pytest.fixture
def told_at_once(monkeypatch):
    """Nothing that is to be written waits for a second to pass."""
    monkeypatch.setattr("jobs.records.FLUSH_SECONDS", 0.0)
    monkeypatch.setattr("jobs.records.FLUSH_SHARE", 0)


@pytest.mark.usefixtures("told_at_once")
def test_what_another_worker_makes_meanwhile_is_not_made_again_but_for_the_next_batch(run):
    """The next one is taken up before the records are read again, while the first is written."""
    model, twin = FakeModel(), FakeModel()

    def generate(requests):
        if not twin.batches:
            run_shard(run.shard(0), run, twin, Worker("two", "fake", batch_size=2))
        return model(requests)

    summary = run_shard(run.shard(0), run, generate, one())
    assert (summary.done, summary.made) == (True, 6)
    assert model.batches == [["picture number 0", "picture number 1"], ["picture number 2", "picture number 3"]]
    assert [session.made for session in summary.sessions] == [6, 4]
    assert files(run) == expected(run)


@pytest.mark.usefixtures("told_at_once")
def test_a_picture_that_another_worker_recorded_and_whose_file_went_is_made(tmp_path):
    run = prepare(tmp_path, "images_per_shard=8", count=8).run
    model, twin = FakeModel(), FakeModel()

    def generate(requests):
        if not twin.batches:
            run_shard(run.shard(0), run, twin, Worker("two", "fake", batch_size=2))
            (run.path / "samples/000/000007.png").unlink()
        return model(requests)

    assert run_shard(run.shard(0), run, generate, one()).done
    assert [batch[0] for batch in model.batches] == ["picture number 0", "picture number 2", "picture number 6"]
    assert files(run) == expected(run)


@pytest.mark.usefixtures("told_at_once")
def test_two_workers_of_a_shard_meet_instead_of_making_everything_twice(tmp_path):
    """Each batch takes 20 ms; side by side in the same order, the two would make 120 pictures of 60."""
    run = prepare(tmp_path, "images_per_shard=60", count=60).run
    models = {name: FakeModel() for name in ("one", "two")}

    def make(name: str) -> None:
        def generate(requests):
            time.sleep(0.02)
            return models[name](requests)

        run_shard(run.shard(0), run, generate, Worker(name, "fake", batch_size=2))

    workers = [threading.Thread(target=make, args=(name,)) for name in models]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    summary = read_summary(run.records_path(0))
    assert summary is not None
    assert (summary.done, summary.made) == (True, 60)
    assert files(run) == expected(run)
    assert sum(len(batch) for model in models.values() for batch in model.batches) < 90


def test_a_full_disk_ends_the_worker_and_leaves_whole_files(run, monkeypatch):
    real, calls = os.fsync, []

    def no_space_at_the_third(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr("ldm.inference.files.os.fsync", no_space_at_the_third)
    with pytest.raises(OutputError, match="No space left on device; free some space"):
        run_shard(run.shard(0), run, FakeModel(), one())
    assert set(files(run).items()) <= set(expected(run).items())
    assert run_shard(run.shard(0), run, FakeModel(), one()).done
    assert files(run) == expected(run)


def test_batches_hold_what_can_be_sampled_together(tmp_path):
    path = tmp_path / "mixed.jsonl"
    lines = ['{"prompt": "a"}', '{"prompt": "b", "height": 128}', '{"prompt": "c"}', '{"prompt": "d", "steps": 2}']
    path.write_text("\n".join(lines))
    run = prepare_mixed(tmp_path, path)
    prompts = [[image.request.prompt for image in batch] for batch in batches(run.shard(0).images, 4)]
    assert prompts == [["a", "c"], ["b"], ["d"]]


def prepare_mixed(folder: Path, path: Path) -> RunDir:
    from jobs.config import read_settings
    from jobs.submit.prepare import prepare_run

    return prepare_run(path, read_settings(["model=rehearsal", f"outputs={folder / 'outputs'}"])).run


@pytest.mark.parametrize("seconds", [0.5, 1.2])
def test_a_worker_killed_at_any_moment_costs_only_what_it_had_not_written(tmp_path, seconds):
    run = prepare(tmp_path, "images_per_shard=60", "steps=30", count=60).run
    command = [sys.executable, "-m", "jobs", "work", str(run.path), "device=cpu"]
    worker = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(PROJECT_ROOT)}, stderr=subprocess.DEVNULL)
    wait_for_a_picture(run)
    time.sleep(seconds)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    survivors = {name: data for name, data in files(run).items() if name.endswith(".png") and name[0] != "."}
    assert survivors
    subprocess.run([*command], env={**os.environ, "PYTHONPATH": str(PROJECT_ROOT)}, check=True, capture_output=True)
    now = {name: data for name, data in files(run).items() if name[0] != "."}
    assert len(now) == 60
    assert survivors.items() <= now.items(), "a picture that was there has not been touched"
    summary = read_summary(run.records_path(0))
    assert summary is not None
    assert summary.done
    records = read_records(run.records_path(0)).images
    assert {Path(record.file).name: record.sha256 for record in records.values()} == {
        name: sha256(data) for name, data in now.items()
    }


def wait_for_a_picture(run: RunDir) -> None:
    deadline = time.monotonic() + 120
    while not (run.path / "samples" / "000" / "000000.png").exists():
        assert time.monotonic() < deadline, "no picture within two minutes"
        time.sleep(0.02)
