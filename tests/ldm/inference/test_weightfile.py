"""A file that is not weights is named for what it is, in one line that says what to do."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
import zipfile

import pytest
import torch

from ldm.errors import WeightsError
from ldm.inference.weightfile import WeightFormat, model_hash, recognise

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:fe4efff1e174c627\nsize 4265380512\n"


def tar_bytes():
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.ckpt"), io.BytesIO())
    return memory.getvalue()


def zip_bytes(*names):
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        for name in names:
            archive.writestr(name, b"x" * 100)
    return memory.getvalue()


WRONG_FILES = {
    "an LFS pointer": (LFS, r"is a Git LFS pointer.*have 4,265,380,512 bytes.*`git lfs pull`"),
    "a web page": (
        b"\n<!DOCTYPE html><html><title> Log in </title>",
        r"is a web page \('Log in'\).*fetch the file itself",
    ),
    "an XML error": (b"<?xml version='1.0'?><Error><Code>AccessDenied", "is a web page, not the weights"),
    "gzip": (gzip.compress(b"x" * 99), "is a gzip archive.*gunzip"),
    "tar": (tar_bytes(), "is a tar archive.*tar -xf"),
    "a zip of something": (zip_bytes("a/b.txt", "c"), r"zip archive without data.pkl \(it holds a/b.txt, c\)"),
    "an empty zip": (zip_bytes(), "is an empty zip archive"),
    "TorchScript": (zip_bytes("m/data.pkl", "m/constants.pkl"), "is a TorchScript program"),
    "half a zip": (
        zip_bytes("archive/data.pkl")[:90],
        "is cut short: it has 90 bytes, and no zip directory.*fetch it again",
    ),
    "GGUF": (b"GGUF\x03\x00", "is a GGUF file"),
    "HDF5": (b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
    "zero bytes": (bytes(4096), "is a run of zero bytes.*fetch it again"),
    "plain text": (b"Entry not\nfound", "is a text file that begins 'Entry not found'"),
    "Chinese text": ("没有找到文件".encode() * 100, "is a text file that begins '没有找到文件"),
    "JSON": (b'{"error":"Repository not found"}', 'is a text file that begins \'{"error"'),
    "a foreign pickle": (b"\x80\x04\x95\x00\x00", "is a pickle that torch.save did not write"),
    "noise": (b"\xff\xfe\x00\x01\x02\x03\x04\x05", "begins with the bytes ff fe 00 01 02 03 04 05"),
    "nothing": (b"", "is empty; fetch it again"),
}


@pytest.mark.parametrize("kind", WRONG_FILES)
def test_a_wrong_file_is_named_in_one_line(tmp_path, kind):
    data, message = WRONG_FILES[kind]
    path = tmp_path / "model.ckpt"
    path.write_bytes(data)
    with pytest.raises(WeightsError, match=message) as raised:
        recognise(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_missing_file_is_said_with_the_place_looked_at(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match=rf"no weights at nothing.ckpt: looked for {tmp_path}/nothing.ckpt"):
        recognise((tmp_path / "nothing.ckpt").relative_to(tmp_path))


def test_a_link_to_nowhere_is_said_with_its_target(tmp_path):
    (tmp_path / "model.ckpt").symlink_to(tmp_path / "gone.ckpt")
    with pytest.raises(WeightsError, match=r"is a link to .*gone.ckpt, where there is no file"):
        recognise(tmp_path / "model.ckpt")


def test_a_folder_is_refused_with_the_file_inside_it(tmp_path):
    with pytest.raises(WeightsError, match="is a folder; no weights lie in it"):
        recognise(tmp_path)
    (tmp_path / "sd-v1-4.ckpt").touch()
    with pytest.raises(WeightsError, match=r"is a folder; give one file, such as .*/sd-v1-4.ckpt"):
        recognise(tmp_path)
    (tmp_path / "model_index.json").touch()
    with pytest.raises(WeightsError, match="layout of diffusers"):
        recognise(tmp_path)


def test_a_pipe_is_refused_without_waiting_for_it(tmp_path):
    os.mkfifo(tmp_path / "model.ckpt")
    with pytest.raises(WeightsError, match="is a device or a pipe"):
        recognise(tmp_path / "model.ckpt")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_said(tmp_path):
    (tmp_path / "model.ckpt").write_bytes(b"x")
    (tmp_path / "model.ckpt").chmod(0)
    with pytest.raises(WeightsError, match="cannot be read: Permission denied"):
        recognise(tmp_path / "model.ckpt")


def test_what_torch_and_safetensors_write_is_recognised_through_a_link_too(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    state = {"w": torch.ones(3)}
    torch.save(state, str(tmp_path / "new.ckpt"))
    torch.save(state, str(tmp_path / "old.ckpt"), _use_new_zipfile_serialization=False)
    safetensors.save_file(state, str(tmp_path / "model.safetensors"))
    (tmp_path / "link").symlink_to(tmp_path / "new.ckpt")
    found = [recognise(tmp_path / name) for name in ("new.ckpt", "old.ckpt", "model.safetensors", "link")]
    assert found == [WeightFormat.ZIP, WeightFormat.LEGACY, WeightFormat.SAFETENSORS, WeightFormat.ZIP]


def test_the_model_hash_is_the_first_ten_digits_of_the_sha256():
    assert model_hash(hashlib.sha256(b"abc").hexdigest()) == "ba7816bf8f"
