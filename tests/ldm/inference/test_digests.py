"""A digest is that of the content, whether it was computed just now, beside other work, or remembered."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import pytest

from ldm.inference import digests
from ldm.inference.digests import remembered_sha256, sha256_beside, sha256_of

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of this test, for files of any size and age."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "LARGE_BYTES", 0)
    monkeypatch.setattr(digests, "SETTLED_SECONDS", -1.0)
    return tmp_path / "cache" / "sdbatch" / "sha256"


@pytest.fixture
def reads(monkeypatch):
    """The files that were read to the end."""
    seen = []
    monkeypatch.setattr(digests, "sha256_of", lambda path, **words: seen.append(path.name) or sha256_of(path, **words))
    return seen


@pytest.fixture
def file(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    return tmp_path / "x"


@pytest.mark.parametrize("piece", [1, 2, 3, 2**20])
def test_sha256_is_that_of_the_content(file, piece):
    assert sha256_of(file, piece=piece) == ABC


def test_a_file_is_read_once(file, reads):
    assert [remembered_sha256(file) for _ in range(3)] == [ABC] * 3
    assert reads == ["x"]


@pytest.mark.parametrize("how", ["written to", "replaced", "written to, its time set back", "another of its name"])
def test_a_file_that_changed_is_read_again(file, reads, how):
    remembered_sha256(file)
    before = file.stat()
    time.sleep(0.02)  # a tick of the clock that files get their times from
    if how == "replaced":
        file.with_name("y").write_bytes(b"abd")
        os.replace(file.with_name("y"), file)
    elif how == "another of its name":
        file.unlink()
        file.symlink_to(file.with_name("z"))
        file.with_name("z").write_bytes(b"abd")
    else:
        with file.open("r+b") as opened:
            opened.write(b"abd")
    if "set back" in how:
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert file.stat().st_mtime_ns == before.st_mtime_ns
    assert remembered_sha256(file) == sha256_of(file) != ABC
    assert len(reads) == 2


def test_a_file_that_changes_while_it_is_read_is_not_remembered(file, cache, monkeypatch):
    def read_and_change(path, piece):
        found = sha256_of(path)
        path.write_bytes(b"abd")
        return found

    time.sleep(0.02)
    with monkeypatch.context() as patch:
        patch.setattr(digests, "sha256_of", read_and_change)
        remembered_sha256(file)
    assert not cache.exists()
    assert remembered_sha256(file) == sha256_of(file)


def test_a_file_that_was_changed_a_moment_ago_is_not_remembered(file, cache, monkeypatch):
    monkeypatch.setattr(digests, "SETTLED_SECONDS", 60.0)
    assert remembered_sha256(file) == ABC
    assert not cache.exists()


def test_a_small_file_is_read_each_time_and_leaves_nothing_behind(file, cache, reads, monkeypatch):
    monkeypatch.setattr(digests, "LARGE_BYTES", 4)
    assert [remembered_sha256(file) for _ in range(2)] == [ABC] * 2
    assert reads == ["x", "x"]
    assert not cache.exists()


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff", b"null", "digest", "path"])
def test_what_is_remembered_and_damaged_is_made_anew(file, cache, reads, damage):
    remembered_sha256(file)
    (kept,) = cache.iterdir()
    if isinstance(damage, bytes):
        kept.write_bytes(damage)
    else:
        changed = {"digest": {"sha256": "0" * 63}, "path": {"path": "/elsewhere"}}[damage]
        kept.write_text(json.dumps({**json.loads(kept.read_text()), **changed}))
    assert [remembered_sha256(file) for _ in range(2)] == [ABC] * 2
    assert reads == ["x", "x"]


def test_a_cache_that_cannot_be_written_to_costs_time_alone(file, cache, reads):
    cache.parent.mkdir(parents=True)
    cache.write_text("a file stands where the folder should be")
    assert [remembered_sha256(file) for _ in range(2)] == [ABC] * 2
    assert reads == ["x", "x"]


@pytest.mark.parametrize(("named", "expected"), [("/scratch/me", "/scratch/me"), ("", "~/.cache"), ("me", "~/.cache")])
def test_the_cache_lies_where_the_user_wants_such_files(monkeypatch, tmp_path, named, expected):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", named)
    assert digests.cache_folder() == Path(expected.replace("~", str(tmp_path))) / "sdbatch"


def test_a_user_without_a_home_waits_each_time(file, reads, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert digests.cache_folder() is None
    assert [remembered_sha256(file) for _ in range(2)] == [ABC] * 2
    assert reads == ["x", "x"]


def test_a_digest_is_computed_beside_other_work(file, reads):
    beside = sha256_beside(file)
    assert beside.result() == beside.result() == ABC
    assert sha256_beside(file).result() == ABC
    assert reads == ["x"]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="only Linux has threads with priorities of their own")
def test_a_digest_beside_leaves_the_processor_to_others(file, monkeypatch):
    def own():
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    monkeypatch.setattr(digests, "sha256_of", lambda path, piece: str(own()))
    before = own()
    assert sha256_beside(file).result() == "19"
    assert own() == before


def test_a_digest_of_what_cannot_be_read_says_so_when_it_is_asked_for(tmp_path):
    beside = sha256_beside(tmp_path / "nothing")
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            beside.result()
