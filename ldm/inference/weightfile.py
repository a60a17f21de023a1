"""What a file that should hold weights really is, told by its first bytes and its directory. Without torch.

The usual wrong files are a Git LFS pointer left by a clone, the HTML page of a login or an error, and a download cut
short. Each is named, with what to do, before anything is built or queued.
"""

from __future__ import annotations

import contextlib
import enum
import re
import zipfile
from pathlib import Path
from typing import Iterator

from ldm.errors import WeightsError

GIVE_WEIGHTS = "give a .safetensors or .ckpt file in the original layout of Stable Diffusion"
HEAD_BYTES = 1024
MODEL_HASH_DIGITS = 10
NAME_SHOWN = 120  # characters; the longest name of SD v1 has 88
WEIGHT_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
SAFETENSORS_HEADER_LIMIT = 100_000_000  # bytes, by the format's own definition

LFS_POINTER = b"version https://git-lfs"
ZIP_ENTRY = b"PK\x03\x04"
PICKLE_PROTOCOL = b"\x80"
# The pickled number 0x1950a86a20f9469cfc6c that torch.save wrote first before torch 1.6; after the protocol byte.
LEGACY_MAGIC = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."

OTHER_FILES = (
    (b"\x1f\x8b", "a gzip archive", "unpack it with gunzip"),
    (b"BZh", "a bzip2 archive", "unpack it with bunzip2"),
    (b"\xfd7zXZ", "an xz archive", "unpack it with unxz"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", "unpack it with unzstd"),
    (b"7z\xbc\xaf", "a 7z archive", "unpack it"),
    (b"Rar!", "a rar archive", "unpack it"),
    (b"PK\x05\x06", "an empty zip archive", "fetch it again"),
    (b"GGUF", "a GGUF file of stable-diffusion.cpp", "fetch the original .safetensors or .ckpt"),
    (b"\x89HDF", "an HDF5 file of TensorFlow or Keras", "fetch the original .safetensors or .ckpt"),
    (b"\x00" * 64, "a run of zero bytes, a download that never ended", "fetch it again"),
)
TAR_MARK, TAR_MARK_AT = b"ustar", 257
HTML_MARKS = (b"<!doctype html", b"<html", b"<head", b"<?xml", b"<error")


@contextlib.contextmanager
def naming_the_file(path: Path) -> Iterator[None]:
    """Inside, what the system refuses of a file of weights becomes a WeightsError."""
    try:
        yield
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}; look at it with ls -l") from error


class WeightFormat(enum.Enum):
    """The three ways in which weights are stored that can be read."""

    SAFETENSORS = "safetensors"
    ZIP = "torch.save, zip"
    LEGACY = "torch.save before torch 1.6"


class UseEma(enum.Enum):
    """Whether the copies of the network's weights averaged over training are taken; `auto`: where all are there."""

    AUTO = "auto"
    YES = "yes"
    NO = "no"


def recognise(path: Path) -> WeightFormat:
    """How the weights in a file are stored; WeightsError saying what the file is, where it is something else."""
    with naming_the_file(path):
        size = _size(path)
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    _refuse_other_files(path, head)
    if head.startswith(ZIP_ENTRY):
        _check_zip(path, size)
        return WeightFormat.ZIP
    if head[:1] == PICKLE_PROTOCOL and head[2:].startswith(LEGACY_MAGIC):
        return WeightFormat.LEGACY
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= SAFETENSORS_HEADER_LIMIT:
        return WeightFormat.SAFETENSORS
    raise WeightsError(f"{path} is {_unknown(head)}; {GIVE_WEIGHTS}")


def model_hash(sha256: str) -> str:
    """The ten hex digits that A1111 writes as 'Model hash'."""
    return sha256[:MODEL_HASH_DIGITS]


def printable(name: str) -> str:
    """A name out of a file, safe to show in one line: without control characters, and not for ever."""
    shown = "".join(char if char.isprintable() else "?" for char in name)
    return shown if len(shown) <= NAME_SHOWN else f"{shown[:NAME_SHOWN]}..."


def cut_short(path: Path, size: int, needed: str) -> WeightsError:
    """The error for a file whose end is not there."""
    return WeightsError(
        f"{path} is cut short: it has {size:,} bytes, {needed}; fetch it again, with `wget -c` or the like"
    )


def _size(path: Path) -> int:
    if path.is_symlink() and not path.exists():
        raise WeightsError(
            f"{path} is a link to {path.resolve()}, where there is no file; mend the link or give the file"
        )
    if not path.exists():
        raise WeightsError(
            f"no weights at {path}: looked for {path.absolute()}; give the path of a .safetensors or .ckpt"
        )
    if path.is_dir():
        raise WeightsError(f"{path} is a folder; {_file_inside(path)}")
    if not path.is_file():
        raise WeightsError(f"{path} is a device or a pipe, not a file; {GIVE_WEIGHTS}")
    size = path.stat().st_size
    if size == 0:
        raise WeightsError(f"{path} is empty; fetch it again")
    return size


def _file_inside(folder: Path) -> str:
    if (folder / "model_index.json").is_file():
        return f"it is in the layout of diffusers, which is not read; {GIVE_WEIGHTS}"
    inside = sorted(file.name for file in folder.iterdir() if file.suffix in WEIGHT_SUFFIXES)
    return f"give one file, such as {folder / inside[0]}" if inside else f"no weights lie in it; {GIVE_WEIGHTS}"


def _refuse_other_files(path: Path, head: bytes) -> None:
    if head.startswith(LFS_POINTER):
        raise WeightsError(
            f"{path} is a Git LFS pointer, not the weights{_lfs_size(head)}; "
            f"run `git lfs pull` in {path.absolute().parent}, or fetch the file itself"
        )
    if head.lstrip().lower().startswith(HTML_MARKS):
        raise WeightsError(
            f"{path} is a web page{_title(head)}, not the weights; fetch the file itself, "
            "from its `resolve` address on Hugging Face or a mirror"
        )
    for magic, what, remedy in OTHER_FILES:
        if head.startswith(magic):
            raise WeightsError(f"{path} is {what}, not the weights; {remedy}")
    if head[TAR_MARK_AT:].startswith(TAR_MARK):
        raise WeightsError(f"{path} is a tar archive, not the weights; unpack it with tar -xf")


def _lfs_size(head: bytes) -> str:
    found = re.search(rb"^size (\d+)", head, re.MULTILINE)
    return f" (which have {int(found.group(1)):,} bytes)" if found else ""


def _title(head: bytes) -> str:
    found = re.search(rb"<title>\s*([^<]{1,60})", head, re.IGNORECASE)
    return f" ({found.group(1).decode('utf-8', 'replace').strip()!r})" if found else ""


def _check_zip(path: Path, size: int) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile as error:
        raise cut_short(path, size, "and no zip directory at its end") from error
    if any(name.endswith("/constants.pkl") for name in names):
        raise WeightsError(f"{path} is a TorchScript program, not weights; {GIVE_WEIGHTS}")
    if not any(name == "data.pkl" or name.endswith("/data.pkl") for name in names):
        raise WeightsError(
            f"{path} is a zip archive without data.pkl (it holds {', '.join(names[:3])}), "
            "so torch.save did not write it; unpack it"
        )


def _unknown(head: bytes) -> str:
    if head[:1] == PICKLE_PROTOCOL:
        return "a pickle that torch.save did not write"
    try:
        text = head.decode("utf-8", "strict" if len(head) < HEAD_BYTES else "ignore")
    except UnicodeDecodeError:
        text = ""
    if text and all(char.isprintable() or char.isspace() for char in text):
        return f"a text file that begins {' '.join(text.split())[:60]!r}"
    return f"no file of weights: it begins with the bytes {head[:8].hex(' ')}"
