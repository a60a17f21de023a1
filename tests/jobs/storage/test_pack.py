"""A packed shard is one tar that others read, the same whoever made it, and nothing is lost or doubled on the way."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import pytest

from jobs.records import read_records, read_summary
from jobs.rundir import RunDir
from jobs.storage import pack, pictures
from jobs.storage.pack import INDEX_SECONDS, Finish, finish_shard, pack_run, pack_shard, write_index
from jobs.storage.pictures import is_complete, members, read
from jobs.submit.prepare import Prepared
from jobs.worker.worker import Worker, run_shard
from ldm.errors import OutputError, RunError
from ldm.inference.models import PROJECT_ROOT
from tests.jobs.support import FakeModel, content, jobs, prepare, sha256

ONE = Worker("one", "fake", batch_size=2)


def make(folder: Path, *words: str, count: int = 6, **model) -> Prepared:
    """A run whose pictures are made and not packed, three a shard."""
    prepared = prepare(folder, "images_per_shard=3", *words, count=count)
    for shard in range(prepared.info.plan.shards):
        run_shard(prepared.run.shard(shard), prepared.run, FakeModel(**model), ONE)
    return prepared


@pytest.fixture
def made(tmp_path) -> Prepared:
    return make(tmp_path, "output=webdataset")


def entries(tar: Path) -> dict[str, bytes]:
    with tarfile.open(tar) as file:
        return {member.name: file.extractfile(member).read() for member in file}


def left(run: RunDir) -> list[str]:
    return sorted(str(path.relative_to(run.samples)) for path in run.samples.rglob("*"))


def test_a_tar_holds_each_picture_its_prompt_and_what_is_known_of_it(made):
    run = made.run
    assert finish_shard(run, made.info, 0) is Finish.DONE
    found = entries(run.tar_path(0))
    assert list(found) == [f"{index:09}.{kind}" for index in range(3) for kind in ("json", "png", "txt")]
    records = read_records(run.records_path(0)).images
    for image in run.shard(0).images:
        key = f"{image.index:09}"
        assert found[f"{key}.png"] == content(image.request)
        assert found[f"{key}.txt"].decode() == image.request.prompt
        described = json.loads(found[f"{key}.json"])
        assert described["request"]["seed"] == image.request.seed
        assert (described["index"], described["request_id"]) == (image.index, image.request_id)
        assert described["sha256"] == records[image.index].sha256 == sha256(found[f"{key}.png"])


def test_packed_pictures_leave_no_file_and_the_others_stay(made):
    finish_shard(made.run, made.info, 0)
    assert left(made.run) == [
        *["000", "000/000003.png", "000/000004.png", "000/000005.png"],
        *["00000.tar", "index.json"],
    ]
    finish_shard(made.run, made.info, 1)
    assert left(made.run) == ["00000.tar", "00001.tar", "index.json"]


def test_equal_pictures_give_equal_tars_whoever_made_them(tmp_path):
    tars = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        prepared = prepare(tmp_path / name, "images_per_shard=3", count=3)
        run_shard(prepared.run.shard(0), prepared.run, FakeModel(), Worker(name, f"card of {name}", batch_size=2))
        pack_shard(prepared.run, prepared.info, 0)
        tars.append(prepared.run.tar_path(0).read_bytes())
    assert tars[0] == tars[1]


def test_a_tar_names_no_user_and_no_time(made):
    pack_shard(made.run, made.info, 0)
    with tarfile.open(made.run.tar_path(0)) as file:
        about = {(each.mtime, each.uid, each.gid, each.uname, each.gname, each.mode, each.isreg()) for each in file}
    assert about == {(0, 0, 0, "", "", 0o644, True)}


def test_dropped_pictures_are_not_in_the_tar_and_those_given_up_do_not_keep_it_waiting(tmp_path):
    prepared = make(tmp_path, "output=webdataset", drop=["picture number 0"], fail=["picture number 2"])
    assert finish_shard(prepared.run, prepared.info, 0) is Finish.LEFT, "picture 2 may yet be made"
    for _ in range(2):
        run_shard(prepared.run.shard(0), prepared.run, FakeModel(fail=["picture number 2"]), ONE)
    assert finish_shard(prepared.run, prepared.info, 0) is Finish.DONE
    assert members(prepared.run.tar_path(0)).keys() == {1}


def test_a_run_of_folders_is_packed_when_asked_and_not_before(tmp_path):
    prepared = make(tmp_path)
    run, info = prepared.run, prepared.info
    assert finish_shard(run, info, 0) is Finish.DONE
    assert not run.tar_path(0).exists()
    assert pack_run(run, info) == []
    assert left(run) == ["00000.tar", "00001.tar", "index.json"]
    assert is_complete(run, info, 0)
    before = {path.name: path.stat().st_mtime_ns for path in run.samples.iterdir()}
    assert pack_run(run, info) == []
    assert {path.name: path.stat().st_mtime_ns for path in run.samples.iterdir()} == before


def test_shards_that_are_not_complete_are_named_and_left(tmp_path):
    prepared = make(tmp_path, fail=["picture number 4"])
    assert pack_run(prepared.run, prepared.info) == [1]
    assert left(prepared.run) == ["000", "000/000003.png", "000/000005.png", "00000.tar", "index.json"]


def test_a_picture_that_is_not_the_recorded_one_is_not_packed(made):
    path = made.run.image_path("samples/000/000001.png")
    path.write_bytes(b"something else")
    with pytest.raises(RunError, match=r"000001\.png is not as it was when it was made: .* python -m jobs resume"):
        pack_shard(made.run, made.info, 0)
    assert not made.run.tar_path(0).exists()
    assert path.read_bytes() == b"something else"


def test_a_picture_that_is_lost_keeps_its_shard_from_being_packed(made, caplog):
    made.run.image_path("samples/000/000001.png").unlink()
    assert not pack_shard(made.run, made.info, 0)
    assert re.search(r"picture 1 has a record and no file: .* python -m jobs resume makes it again", caplog.text)
    assert len(left(made.run)) == 6


def test_a_picture_that_is_lost_between_looking_and_packing_is_left_to_the_worker(made, monkeypatch):
    real = pack.files_if_made

    def lose_one(*words):
        found = real(*words)
        made.run.image_path("samples/000/000001.png").unlink()
        return found

    monkeypatch.setattr(pack, "files_if_made", lose_one)
    assert finish_shard(made.run, made.info, 0) is Finish.LEFT


def test_a_damaged_shard_is_said_and_left_and_keeps_no_other_from_being_finished(made, caplog):
    run, info = made.run, made.info
    damaged = run.image_path("samples/000/000001.png")
    damaged.write_bytes(b"something else")
    assert [finish_shard(run, info, shard) for shard in range(2)] == [Finish.DAMAGED, Finish.DONE]
    [said] = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert said.startswith(f"shard 0 is left as it is: {damaged} is not as it was when it was made")
    assert said.endswith(f"; python -m jobs verify {run.path} names all that is damaged")
    assert damaged.read_bytes() == b"something else"
    damaged.unlink()
    run_shard(run.shard(0), run, FakeModel(), ONE)
    assert finish_shard(run, info, 0) is Finish.DONE
    assert_whole(run, info, shards=2)


def test_a_damaged_tar_is_said_and_the_index_of_the_others_is_written(made):
    run, info = made.run, made.info
    run.tar_path(0).write_bytes(b"<html>not a tar</html>" * 100)
    assert [finish_shard(run, info, shard) for shard in range(2)] == [Finish.DAMAGED, Finish.DONE]
    assert in_index(run) == ["00001.tar"]
    with pytest.raises(RunError, match=r"1 of 2 shards are damaged and not packed, the first is 0; .* jobs verify"):
        pack_run(run, info)


@pytest.mark.parametrize("look", [1, 2])
def test_a_run_of_folders_keeps_its_files_though_a_twin_finishes_the_shard_meanwhile(tmp_path, monkeypatch, look):
    prepared = prepare(tmp_path, "images_per_shard=3", count=3)
    run, info = prepared.run, prepared.info
    looks = []

    def then_twin(path):
        found = read_summary(path)
        looks.append(path)
        if len(looks) == look:
            run_shard(run.shard(0), run, FakeModel(), ONE)
        return found

    monkeypatch.setattr(pictures, "read_summary", then_twin)
    for _ in range(3):
        finish_shard(run, info, 0)
    assert finish_shard(run, info, 0) is Finish.DONE
    assert left(run) == ["000", "000/000000.png", "000/000001.png", "000/000002.png"]


def test_a_shard_of_which_a_picture_is_lost_has_something_left_to_do(made):
    run = made.run
    run.image_path("samples/000/000001.png").unlink()
    assert finish_shard(run, made.info, 0) is Finish.LEFT, "though its records say that it is done"
    assert finish_shard(run, made.info, 1) is Finish.DONE
    run.tar_path(1).unlink()
    assert finish_shard(run, made.info, 1) is Finish.LEFT
    for shard in range(2):
        run_shard(run.shard(shard), run, FakeModel(), ONE)
        assert finish_shard(run, made.info, shard) is Finish.DONE
    assert_whole(run, made.info, shards=2)


def test_a_full_disk_leaves_the_pictures_and_no_part_of_a_tar(made, monkeypatch):
    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    before = left(made.run)
    monkeypatch.setattr("ldm.inference.files.os.fsync", no_space)
    with pytest.raises(OutputError, match=r"cannot write .*00000\.tar: No space left on device; free some space"):
        pack_shard(made.run, made.info, 0)
    assert left(made.run) == before


def test_the_index_names_every_tar(made):
    pack_run(made.run, made.info)
    index = json.loads(made.run.index_path.read_text())
    assert (index["__kind__"], index["wids_version"]) == ("wids-shard-index-v1", 1)
    assert [(entry["url"], entry["nsamples"]) for entry in index["shardlist"]] == [("00000.tar", 3), ("00001.tar", 3)]
    for entry in index["shardlist"]:
        assert entry["filesize"] == (made.run.samples / entry["url"]).stat().st_size


def test_an_index_that_is_lost_or_wrong_is_made_good_by_packing_again(made):
    pack_run(made.run, made.info)
    good = made.run.index_path.read_bytes()
    for bad in (b"", b"{torn", good.replace(b'"filesize": 1', b'"filesize": 2'), good.replace(b"00000", b"00009")):
        made.run.index_path.write_bytes(bad)
        assert pack_run(made.run, made.info) == []
        assert made.run.index_path.read_bytes() == good


def test_whoever_writes_the_index_last_sees_the_tars_of_the_others(made, monkeypatch):
    """One is held up between looking and writing; meanwhile another packs its shard and writes the index."""
    real, held = pack.write_atomically, []

    def hold_up(path, data):
        if not held:
            held.append(path)
            pack_shard(made.run, made.info, 1)
        real(path, data)

    monkeypatch.setattr(pack, "write_atomically", hold_up)
    pack_shard(made.run, made.info, 0)
    assert in_index(made.run) == ["00000.tar", "00001.tar"]


def in_index(run: RunDir) -> list[str]:
    return [entry["url"] for entry in json.loads(run.index_path.read_text())["shardlist"]]


def test_many_packers_write_the_index_once_a_minute_and_when_all_is_packed(tmp_path):
    prepared = make(tmp_path, "output=webdataset", count=15)
    run, info = prepared.run, prepared.info
    seen = []
    for shard in (3, 1, 0, 4, 2):
        if shard == 0:
            long_ago = time.time() - INDEX_SECONDS - 1
            os.utime(run.index_path, (long_ago, long_ago))
        assert finish_shard(run, info, shard) is Finish.DONE
        seen.append("".join(url[4] for url in in_index(run)))
    assert seen == ["3", "3", "013", "013", "01234"]
    assert_whole(run, info, shards=5)


def test_a_shard_without_pictures_does_not_keep_the_index_waiting(tmp_path):
    dropped = [f"picture number {number}" for number in (3, 4, 5)]
    prepared = make(tmp_path, "output=webdataset", count=9, drop=dropped)
    assert [finish_shard(prepared.run, prepared.info, shard) for shard in (0, 2)] == [Finish.DONE] * 2
    assert in_index(prepared.run) == ["00000.tar", "00002.tar"]


def test_packers_do_not_take_the_parts_of_the_index_from_each_other(made):
    run = made.run
    parts = {age: run.samples / f".index.json.{age:012}.part" for age in (0, 100)}
    for age, part in parts.items():
        part.write_bytes(b"half")
        os.utime(part, (time.time() - age,) * 2)
    assert finish_shard(run, made.info, 0) is Finish.DONE
    assert {age: part.exists() for age, part in parts.items()} == {0: True, 100: False}
    assert finish_shard(run, made.info, 1) is Finish.DONE
    assert pack_run(run, made.info) == []
    assert_whole(run, made.info, shards=2)


def test_a_tar_that_was_made_anew_is_told_anew(made):
    run = made.run
    pack_run(run, made.info)
    good = run.index_path.read_bytes()
    run.index_path.write_bytes(
        good.replace(b'"filesize": 1', b'"filesize": 2').replace(b'"nsamples": 3', b'"nsamples": 9')
    )
    write_index(run)
    assert run.index_path.read_bytes() == good


def test_a_pass_over_all_shards_lists_a_folder_once(tmp_path, monkeypatch):
    prepared = make(tmp_path, count=30)
    run, info = prepared.run, prepared.info
    listed, real = [], os.listdir
    monkeypatch.setattr(os, "listdir", lambda folder: listed.append(folder) or real(folder))
    names = pictures.OnePass()
    assert all(finish_shard(run, info, shard, names) for shard in range(info.plan.shards))
    assert listed == [run.samples / "000"]
    listed.clear()
    assert all(is_complete(run, info, shard, names) for shard in range(info.plan.shards))
    assert listed == []


def test_a_run_without_a_tar_has_no_index(made):
    write_index(made.run)
    assert not made.run.index_path.exists()


def test_many_pack_one_run_at_once(tmp_path):
    prepared = make(tmp_path, count=60)
    run, info = prepared.run, prepared.info
    problems: list[BaseException] = []

    def pack_all() -> None:
        try:
            pack_run(run, info)
        except BaseException as error:
            problems.append(error)

    packers = [threading.Thread(target=pack_all) for _ in range(4)]
    for packer in packers:
        packer.start()
    for packer in packers:
        packer.join()
    assert problems == []
    assert_whole(run, info, shards=20)


def assert_whole(run: RunDir, info, shards: int) -> None:
    """Every picture is once in a tar, and there is nothing else."""
    assert left(run) == [*(f"{shard:05}.tar" for shard in range(shards)), "index.json"]
    names = [name for shard in range(shards) for name in entries(run.tar_path(shard)) if name.endswith(".png")]
    assert names == [f"{index:09}.png" for index in range(info.plan.images)]
    for shard in range(shards):
        assert is_complete(run, info, shard)
        assert all(read(run, shard, image) == content(image.request) for image in run.shard(shard).images)


# What is called for the nth time when it dies. A part is unlinked after it got its name, also where it was renamed.
MOMENTS = {
    "in the middle of a tar": ("tarfile", "TarFile", "addfile", 4),
    "before a tar has its name": ("os", "", "link", 1),
    "while a tar has two names": ("pathlib", "Path", "unlink", 1),
    "before the index has its name": ("os", "", "replace", 1),
    "before the first file goes": ("pathlib", "Path", "unlink", 3),
    "between two files": ("pathlib", "Path", "unlink", 4),
    "before an empty folder goes": ("pathlib", "Path", "rmdir", 1),
    "in the middle of the second tar": ("tarfile", "TarFile", "addfile", 13),
}
KILLED = """
import importlib, os, signal, sys
from pathlib import Path
import jobs.storage.pack
from jobs.rundir import RunDir
module, owner, name, count = *sys.argv[2:5], int(sys.argv[5])
place = importlib.import_module(module)
place = getattr(place, owner) if owner else place
real, calls = getattr(place, name), []
def dying(*words, **named):
    calls.append(words)
    if len(calls) == count:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*words, **named)
setattr(place, name, dying)
run = RunDir(Path(sys.argv[1]))
jobs.storage.pack.pack_run(run, run.info())
"""


@pytest.mark.parametrize("moment", MOMENTS.values(), ids=MOMENTS.keys())
def test_a_packer_killed_at_any_moment_costs_nothing(made, moment):
    run = made.run
    command = [sys.executable, "-c", KILLED, str(run.path), *map(str, moment)]
    environ = {**os.environ, "PYTHONPATH": str(PROJECT_ROOT)}
    killed = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, f"it was to die: {killed.stderr}"
    for shard in range(2):
        for image in run.shard(shard).images:
            assert read(run, shard, image) == content(image.request), "no picture is ever nowhere"
    assert pack_run(run, made.info) == []
    assert_whole(run, made.info, shards=2)


def test_workers_that_are_killed_and_run_twice_leave_a_whole_run_of_tars(tmp_path):
    """Real processes: two copies of all the work, one of them killed on the way, and then one that finishes."""
    prepared = prepare(tmp_path, "images_per_shard=20", "steps=3", "output=webdataset", "format=webp", count=120)
    run, info = prepared.run, prepared.info
    environ = {**os.environ, "PYTHONPATH": str(PROJECT_ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "jobs", "work", str(run.path), "device=cpu"]
    copies = [subprocess.Popen(command, env=environ, stderr=subprocess.DEVNULL) for _ in range(2)]
    try:
        wait_for(run.tar_path(1))
        copies[0].send_signal(signal.SIGKILL)
    finally:
        statuses = [copy.wait() for copy in copies]
    assert statuses[1] == 0
    assert jobs("work", str(run.path), cwd=tmp_path).returncode == 0
    assert left(run) == [*(f"{shard:05}.tar" for shard in range(6)), "index.json"]
    for shard in range(6):
        records = read_records(run.records_path(shard)).images
        for image in run.shard(shard).images:
            assert sha256(read(run, shard, image)) == records[image.index].sha256
    assert is_complete(run, info, 5)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline, f"no {path.name} within two minutes"
        time.sleep(0.02)


READING = """
import json, sys
import webdataset
samples = webdataset.WebDataset(sys.argv[1:], shardshuffle=False).decode("rgb8")
print(json.dumps([[s["__key__"], s["txt"], s["json"]["request"]["seed"], s["jpg"].shape] for s in samples]))
"""


@pytest.mark.slow  # it imports torch
def test_the_webdataset_library_reads_what_was_packed(tmp_path):
    pytest.importorskip("webdataset")
    prepared = prepare(tmp_path, "images_per_shard=3", "output=webdataset", "format=jpeg")
    run = prepared.run
    assert jobs("work", str(run.path), cwd=tmp_path).returncode == 0
    urls = [str(run.samples / entry["url"]) for entry in json.loads(run.index_path.read_text())["shardlist"]]
    # In a process of its own: the library leaves the last file open, which would be a warning here.
    done = subprocess.run([sys.executable, "-c", READING, *urls], stdout=subprocess.PIPE, check=True)
    samples = json.loads(done.stdout)
    planned = [image for shard in range(2) for image in run.shard(shard).images]
    assert samples == [
        [f"{image.index:09}", image.request.prompt, image.request.seed, [image.request.height, image.request.width, 3]]
        for image in planned
    ]
