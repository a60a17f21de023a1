"""A picture is in its own file or in a tar, and whoever asks need not know in which."""

from __future__ import annotations

import dataclasses

import pytest

from jobs.records import RecordBook, read_records
from jobs.storage import pictures
from jobs.storage.pack import Finish, finish_shard, pack_run, pack_shard
from jobs.storage.pictures import (
    indexed,
    is_complete,
    is_there,
    keep,
    members,
    own_files,
    packed,
    read,
    samples_in,
    tars,
)
from jobs.submit.steer import forget_failures
from jobs.worker.worker import Worker, missing_images, run_shard
from ldm.errors import RunError
from tests.jobs.support import FakeModel, content, prepare, sha256

ONE, TWO = Worker("one", "fake", batch_size=2), Worker("two", "fake", batch_size=2)


@pytest.fixture
def prepared(tmp_path):
    return prepare(tmp_path, "images_per_shard=3")


@pytest.fixture
def made(prepared):
    for shard in range(2):
        run_shard(prepared.run.shard(shard), prepared.run, FakeModel(), ONE)
    return prepared


def test_a_picture_is_read_from_its_file_and_from_its_tar(made):
    run = made.run
    image = run.shard(1).images[0]
    assert (is_there(run, 1, image), read(run, 1, image)) == (True, content(image.request))
    assert pack_shard(run, made.info, 1)
    assert not run.image_path(image.file).exists()
    assert (is_there(run, 1, image), read(run, 1, image)) == (True, content(image.request))
    record = read_records(run.records_path(1)).images[image.index]
    assert (is_there(run, 1, record), read(run, 1, record)) == (True, content(image.request))


def test_a_picture_that_is_nowhere_is_not_there(made):
    image = made.run.shard(0).images[1]
    made.run.image_path(image.file).unlink()
    assert not is_there(made.run, 0, image)
    with pytest.raises(RunError, match=r"picture 1 is not there: .*000001\.png; python -m jobs resume makes it again"):
        read(made.run, 0, image)


def test_many_questions_open_a_tar_once(made, monkeypatch):
    pack_shard(made.run, made.info, 0)
    members(made.run.tar_path(0))
    opened = []
    monkeypatch.setattr("jobs.storage.pictures.tarfile.open", lambda *words: opened.append(words))
    assert all(is_there(made.run, 0, image) for image in made.run.shard(0).images * 10)
    assert opened == []


def test_a_shard_is_complete_when_it_is_recorded_and_its_pictures_are_somewhere(made):
    run, info = made.run, made.info
    assert is_complete(run, info, 0)
    pack_shard(run, made.info, 0)
    assert is_complete(run, info, 0), "a run of folders may be packed"
    run.tar_path(0).unlink()
    assert not is_complete(run, info, 0)
    run.image_path("samples/000/000004.png").unlink()
    assert not is_complete(run, info, 1)


def test_a_shard_that_is_to_be_packed_is_complete_only_then(tmp_path):
    prepared = prepare(tmp_path, "images_per_shard=3", "output=webdataset")
    run, info = prepared.run, prepared.info
    run_shard(run.shard(0), run, FakeModel(drop=["picture number 1"]), ONE)
    assert not is_complete(run, info, 0)
    assert finish_shard(run, info, 0) is Finish.DONE
    assert is_complete(run, info, 0)
    assert members(run.tar_path(0)).keys() == {0, 2}
    run.image_path("samples/000/000002.png").parent.mkdir(parents=True, exist_ok=True)
    run.image_path("samples/000/000002.png").write_bytes(b"left by a worker that was killed")
    assert not is_complete(run, info, 0)
    assert finish_shard(run, info, 0) is Finish.DONE
    assert not run.image_path("samples/000").exists()


def test_a_shard_is_complete_though_a_dropped_picture_has_a_file(tmp_path):
    """A twin on another card judged it differently."""
    prepared = prepare(tmp_path, "images_per_shard=3")
    run, info = prepared.run, prepared.info
    run_shard(run.shard(0), run, FakeModel(drop=["picture number 0", "picture number 1"]), ONE)
    assert is_complete(run, info, 0)
    run.image_path(run.shard(0).images[1].file).write_bytes(b"the twin's")
    assert is_complete(run, info, 0)
    run.image_path(run.shard(0).images[2].file).unlink()
    assert not is_complete(run, info, 0)


def test_a_shard_of_which_everything_was_dropped_needs_no_tar(tmp_path):
    prepared = prepare(tmp_path, "images_per_shard=1", "output=webdataset", count=1)
    run_shard(prepared.run.shard(0), prepared.run, FakeModel(drop=["picture number 0"]), ONE)
    assert finish_shard(prepared.run, prepared.info, 0)
    assert tars(prepared.run, 0) == []


def test_a_picture_that_is_given_up_is_not_waited_for(tmp_path):
    prepared = prepare(tmp_path)
    for attempt in (1, 2, 3):
        worker = Worker("one", "fake", batch_size=2)
        run_shard(prepared.run.shard(0), prepared.run, FakeModel(fail=["picture number 1"]), worker)
        assert is_complete(prepared.run, prepared.info, 0) is (attempt == 3)


def test_a_late_writer_of_a_packed_picture_leaves_no_file_and_describes_the_one_that_stays(made):
    run = made.run
    pack_shard(run, made.info, 0)
    image = run.shard(0).images[2]
    assert keep(run, image, b"made on another card") == sha256(content(image.request))
    assert not run.image_path(image.file).exists()
    assert read(run, 0, image) == content(image.request)


def test_a_writer_whose_file_is_packed_while_it_looks_finds_it_in_the_tar(made, monkeypatch):
    run, image = made.run, made.run.shard(0).images[2]

    def pack_now(path):
        monkeypatch.undo()
        pack_shard(run, made.info, 0)
        return path.read_bytes() and ""

    monkeypatch.setattr("jobs.storage.pictures.sha256_of", pack_now)
    assert keep(run, image, b"made on another card") == sha256(content(image.request))


@pytest.mark.parametrize("times", [1, 2, 100])
def test_a_file_that_goes_before_it_is_looked_at_is_written_again_and_not_for_ever(made, monkeypatch, times):
    run, image = made.run, made.run.shard(0).images[2]
    real, data, gone = pictures.write_once, content(image.request), []

    def written_and_gone(path, data):
        if len(gone) < times:  # another's file stood there, and a user removes it
            gone.append(path)
            path.unlink(missing_ok=True)
            return False
        return real(path, data)

    monkeypatch.setattr(pictures, "write_once", written_and_gone)
    if times < 100:
        assert keep(run, image, data) == sha256(data)
        assert read(run, 0, image) == data
    else:
        with pytest.raises(RunError, match=r"000002\.png comes and goes: another process removes it; .* jobs resume"):
            keep(run, image, data)


def test_a_packed_shard_is_not_made_again_by_a_worker_that_comes_back(made):
    run = made.run
    before = run.records_path(0).read_bytes()
    pack_shard(run, made.info, 0)
    model = FakeModel()
    summary = run_shard(run.shard(0), run, model, TWO)
    assert (summary.done, model.batches) == (True, [])
    assert read_records(run.records_path(0)).images.keys() == {0, 1, 2}
    assert before


def test_a_shard_that_is_packed_under_a_worker_costs_it_two_batches_and_nothing_else(prepared, monkeypatch):
    """The other copy of a requeued task: all is done by the one, while the other is at its first batch. It takes up the
    second before it has read again what is recorded.
    """
    monkeypatch.setattr("jobs.records.FLUSH_SECONDS", 0.0)
    monkeypatch.setattr("jobs.records.FLUSH_SHARE", 0)
    run, model, twin = prepared.run, FakeModel(), FakeModel()

    def generate(requests):
        if not twin.batches:
            run_shard(run.shard(0), run, twin, TWO)
            assert pack_shard(run, prepared.info, 0)
        return [picture_of_another_card(picture) for picture in model(requests)]

    assert run_shard(run.shard(0), run, generate, ONE).done
    assert [batch[0] for batch in model.batches] == ["picture number 0", "picture number 2"]
    assert not (run.path / "samples/000").is_dir() or not own_files(run, prepared.info, 0)
    for image in run.shard(0).images:
        record = read_records(run.records_path(0)).images[image.index]
        assert record.sha256 == sha256(read(run, 0, image)) == sha256(content(image.request))


def picture_of_another_card(picture):
    return dataclasses.replace(picture, encode=lambda: picture.encode() + b" on another card")


def test_what_was_made_after_packing_is_found_in_a_further_tar(made):
    run = made.run
    run.records_path(0).write_bytes(b"")
    run_shard(run.shard(0), run, FakeModel(fail=["picture number 1"]), ONE)
    run.image_path("samples/000/000001.png").unlink()
    for _ in range(2):
        run_shard(run.shard(0), run, FakeModel(fail=["picture number 1"]), ONE)
    assert pack_shard(run, made.info, 0), "a picture that failed three times is given up"
    assert forget_failures(run, made.info) == 1
    assert not is_complete(run, made.info, 0)
    assert [image.index for image in missing(run)] == [1]
    run_shard(run.shard(0), run, FakeModel(), ONE)
    assert pack_shard(run, made.info, 0)
    assert [tar.name for tar in tars(run, 0)] == ["00000.tar", "00000-1.tar"]
    assert [sorted(members(tar)) for tar in tars(run, 0)] == [[0, 2], [1]]
    assert sorted(packed(run, 0)) == [0, 1, 2]
    assert is_complete(run, made.info, 0)


def missing(run):
    return missing_images(run.shard(0), run, RecordBook(run.records_path(0), run.shard(0), worker="x", device="y"))


@pytest.mark.parametrize("length", [0.3, 0.5, 0.9])
def test_a_torn_tar_is_named_with_what_to_do(made, length):
    pack_shard(made.run, made.info, 0)
    tar = made.run.tar_path(0)
    data = tar.read_bytes()
    tar.write_bytes(data[: int(len(data) * length) // 512 * 512])
    with pytest.raises(RunError, match=r"00000\.tar is damaged: .*; remove it, then python -m jobs resume"):
        packed(made.run, 0)


def test_something_else_in_the_place_of_a_tar_is_named_too(made):
    made.run.tar_path(0).write_bytes(b"<html>not a tar</html>" * 100)
    with pytest.raises(RunError, match=r"00000\.tar is damaged"):
        is_there(made.run, 0, made.run.shard(0).images[0].__class__(9, 0, "samples/000/000009.png", "", None))


def test_an_empty_file_under_the_name_of_a_tar_is_a_name_that_is_being_taken(made):
    made.run.tar_path(0).touch()
    assert tars(made.run, 0) == []


def test_the_index_saves_counting_as_long_as_it_speaks_of_this_tar(made, monkeypatch):
    pack_run(made.run, made.info)
    tar = made.run.tar_path(0)
    assert indexed(made.run.index_path)["00000.tar"]["nsamples"] == 3
    counted = []
    monkeypatch.setattr("jobs.storage.pictures.members", lambda path: counted.append(path) or {0: None})
    assert (samples_in(tar), counted) == (3, [])
    with tar.open("ab") as file:
        file.write(bytes(512))
    assert (samples_in(tar), counted) == (1, [tar])
    made.run.index_path.write_text("{torn")
    assert samples_in(made.run.tar_path(1)) == 1
