"""Tensors are views of a local file and copies of a remote one, and never change the file."""

from __future__ import annotations

import errno
import os
import re
import resource
from io import FileIO

import pytest
import torch

from ldm.errors import WeightsError
from ldm.inference import tensors
from ldm.inference.contents import StoredTensor, read_contents
from ldm.inference.tensors import TensorReader, is_on_network

PAGES = 3000


@pytest.fixture
def checkpoint(tmp_path):
    torch.save({"w": torch.arange(PAGES * 1024.0)}, str(tmp_path / "model.ckpt"))
    return read_contents(tmp_path / "model.ckpt")


def resident_mib():
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20


def test_a_mapped_tensor_costs_no_memory_until_touched_and_none_when_it_is_gone(checkpoint):
    before = resident_mib()
    with TensorReader(checkpoint, mapped=True) as reader:
        tensor = reader.read(checkpoint.tensors["w"])
    assert resident_mib() - before < 3
    tensor.sum()
    part = tensor.view(2, -1)[1]
    del tensor
    assert resident_mib() - before > 10, "a part of it is still there"
    del part
    assert resident_mib() - before < 3


@pytest.mark.parametrize(("kept", "gone"), [("part", "whole"), ("whole", "part"), ("whole", "again")])
def test_what_was_written_to_a_tensor_stays_when_another_of_the_same_bytes_is_gone(tmp_path, kept, gone):
    whole = torch.arange(PAGES * 1024.0)
    torch.save({"whole": whole, "part": whole[1024 : 9 * 1024], "again": whole}, str(tmp_path / "tied.ckpt"))
    contents = read_contents(tmp_path / "tied.ckpt")
    with TensorReader(contents, mapped=True) as reader:
        one, other = (reader.read(contents.tensors[name]) for name in (kept, gone))
    expected = one.neg_().clone()
    del other
    assert torch.equal(one, expected)


@pytest.mark.parametrize("mapped", [True, False])
def test_writing_to_a_tensor_leaves_the_file_alone(checkpoint, mapped):
    before = checkpoint.path.read_bytes()
    with TensorReader(checkpoint, mapped=mapped) as reader:
        tensor = reader.read(checkpoint.tensors["w"])
    tensor.zero_()
    assert checkpoint.path.read_bytes() == before


def test_a_tensor_that_is_not_aligned_is_read_all_the_same(tmp_path):
    path = tmp_path / "bytes"
    path.write_bytes(b"abc" + torch.arange(5.0).numpy().tobytes())
    stored = StoredTensor("float32", (5,), (1,), 3)
    torch.save({"w": torch.zeros(1)}, str(tmp_path / "any.ckpt"))
    contents = type(read_contents(tmp_path / "any.ckpt"))(path, None, {"w": stored}, None)
    with TensorReader(contents, mapped=True) as reader:
        assert reader.read(stored).tolist() == [0, 1, 2, 3, 4]


def test_a_file_that_shrinks_while_it_is_read_is_said(checkpoint):
    with TensorReader(checkpoint, mapped=False) as reader:
        os.truncate(checkpoint.path, 10_000)
        with pytest.raises(WeightsError, match="became shorter while it was read"):
            reader.read(checkpoint.tensors["w"])


def test_the_file_system_decides_between_mapping_and_reading(tmp_path):
    mounts = tmp_path / "mounts"
    real = os.path.realpath(tmp_path)
    for line, expected in [
        ("10.0.0.1@o2ib:/work {}/a lustre rw 0 0", True),
        ("server:/home {}/a nfs4 rw 0 0", True),
        ("gpfs1 {}/a gpfs rw 0 0", True),
        ("user@host: {}/a fuse.sshfs rw 0 0", True),
        ("/dev/sdb1 {}/a ext4 rw 0 0", False),
        ("server:/home {}/ab nfs4 rw 0 0", False),
        ("server:/home {}/a/b/c/d nfs4 rw 0 0", False),
    ]:
        mounts.write_text("overlay / overlay rw 0 0\n" + line.format(real) + "\n")
        assert is_on_network(tmp_path / "a" / "b" / "model.ckpt", mounts) is expected, line
    mounts.write_text(f"fs / nfs rw 0 0\nlocal {real}/with\\040blank ext4 rw 0 0\n")
    assert not is_on_network(tmp_path / "with blank" / "model.ckpt", mounts)
    assert not is_on_network(tmp_path, tmp_path / "no table of mounts")


@pytest.mark.parametrize("call", ["readinto", "open"])
def test_what_the_system_refuses_names_the_file(checkpoint, monkeypatch, call):
    class Stale(FileIO):
        def __init__(self, name):
            if call == "open":
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            super().__init__(name)

        def readinto(self, buffer):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(tensors, "FileIO", Stale)
    said = "Stale file handle" if call == "open" else "Input/output error"
    refused = pytest.raises(WeightsError, match=rf"^{re.escape(str(checkpoint.path))} cannot be read: {said}; ")
    with refused, TensorReader(checkpoint, mapped=False) as reader:
        reader.read(checkpoint.tensors["w"])


def test_a_file_system_that_cannot_map_is_read_instead(checkpoint):
    expected = torch.arange(PAGES * 1024.0)
    limit = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (address_space() + 2**20, limit[1]))
    try:
        reader = TensorReader(checkpoint, mapped=True)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limit)
    with reader:
        assert torch.equal(reader.read(checkpoint.tensors["w"]), expected)
        assert reader._map is None


def address_space():
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * os.sysconf("SC_PAGESIZE")
