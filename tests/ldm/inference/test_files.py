"""Results on the disk are whole or absent, never overwritten, and a failure names the file."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ldm.errors import OutputError
from ldm.inference import files
from ldm.inference.files import (
    NumberedFiles,
    file_system_of,
    make_folder,
    write_atomically,
    write_once,
    write_once_from,
)

MOUNTED = """\
/dev/sda / ext4 rw 0 0
home:/home /public nfs4 rw 0 0
l@o:/l /public/lustre lustre rw 0 0
a\\040b /public/with\\040blank ext4 rw 0 0
systemd-1 /data autofs rw 0 0
server:/data /data nfs4 rw 0 0
 /mnt tmpfs rw 0 0

/half
"""


def test_the_innermost_mount_and_of_several_on_one_place_the_last_tells_the_kind_of_a_folder(tmp_path):
    mounts = tmp_path / "mounts"
    mounts.write_text(MOUNTED)
    kinds = {
        "/public/home/user": "nfs4", "/public/lustre": "lustre", "/publican": "ext4", "/public": "nfs4",
        "/public/with blank/x": "ext4", "/data/weights": "nfs4", "/": "ext4",
    }  # fmt: skip
    assert {path: file_system_of(Path(path), mounts) for path in kinds} == kinds
    assert file_system_of(Path("/public"), tmp_path / "missing") == ""
    mounts.write_text("rootfs / rootfs rw 0 0\nserver:/root / nfs rw 0 0\n")
    assert file_system_of(tmp_path, mounts) == "nfs"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def no_hard_links(monkeypatch):
    def refuse(source, target):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(files.os, "link", refuse)


def test_a_file_is_written_whole_into_a_new_folder(tmp_path):
    write_atomically(tmp_path / "a" / "b" / "x.bin", b"whole")
    assert (tmp_path / "a" / "b" / "x.bin").read_bytes() == b"whole"
    assert names(tmp_path / "a" / "b") == ["x.bin"]


def test_a_file_is_replaced_in_one_step(tmp_path):
    path = tmp_path / "x.bin"
    write_atomically(path, b"old")
    with path.open("rb") as reader:
        write_atomically(path, b"new")
        assert reader.read() == b"old", "who had the old file open goes on reading the old file"
    assert path.read_bytes() == b"new"


def test_the_first_of_two_writers_stays(tmp_path):
    path = tmp_path / "a" / "x.bin"
    assert write_once(path, b"first")
    assert not write_once(path, b"second")
    assert path.read_bytes() == b"first"
    assert names(tmp_path / "a") == ["x.bin"]


def test_a_file_may_come_piece_by_piece_and_the_first_one_stays_then_too(tmp_path):
    def fill(file):
        for piece in (b"first ", b"and last"):
            file.write(piece)

    assert write_once_from(tmp_path / "x.bin", fill)
    assert not write_once_from(tmp_path / "x.bin", lambda file: file.write(b"second"))
    assert (tmp_path / "x.bin").read_bytes() == b"first and last"
    assert names(tmp_path) == ["x.bin"]


def test_a_file_whose_pieces_end_early_is_not_there(tmp_path):
    def fill(file):
        file.write(b"first ")
        raise ValueError("the rest is lost")

    with pytest.raises(ValueError, match="the rest is lost"):
        write_once_from(tmp_path / "x.bin", fill)
    assert names(tmp_path) == []


def test_a_result_is_readable_by_whom_the_umask_lets(tmp_path):
    umask = os.umask(0o022)
    try:
        write_atomically(tmp_path / "x.bin", b"x")
    finally:
        os.umask(umask)
    assert (tmp_path / "x.bin").stat().st_mode & 0o777 == 0o644


def test_numbers_start_at_zero_and_count_up(tmp_path):
    samples = NumberedFiles(tmp_path / "samples", "{:05}.png")
    assert [samples.write(b"x").name for _ in range(3)] == ["00000.png", "00001.png", "00002.png"]


def test_numbers_go_on_above_the_highest_whatever_was_deleted(tmp_path):
    for name in ["00000.png", "00007.png", "00009.txt", "100.png.bak", "grid-0044.png"]:
        (tmp_path / name).write_bytes(b"old")
    assert NumberedFiles(tmp_path, "{:05}.png").write(b"new").name == "00008.png"
    assert NumberedFiles(tmp_path, "grid-{:04}.png").write(b"new").name == "grid-0045.png"


def test_a_number_that_another_process_took_meanwhile_is_stepped_over(tmp_path):
    first, second = NumberedFiles(tmp_path, "{:05}.png"), NumberedFiles(tmp_path, "{:05}.png")
    assert first.write(b"first").name == "00000.png"
    assert second.write(b"second").name == "00001.png"
    assert (tmp_path / "00000.png").read_bytes() == b"first"


def test_names_are_taken_exclusively_without_hard_links_too(tmp_path, no_hard_links):
    first, second = NumberedFiles(tmp_path, "{:05}.png"), NumberedFiles(tmp_path, "{:05}.png")
    first.write(b"first")
    second.write(b"second")
    assert [path.read_bytes() for path in sorted(tmp_path.iterdir())] == [b"first", b"second"]


def test_an_empty_file_of_a_writer_that_was_killed_is_replaced(tmp_path, no_hard_links, monkeypatch):
    monkeypatch.setattr(files, "PLACEHOLDER_SECONDS", 0.1)
    path = tmp_path / "x.png"
    path.touch()
    assert write_once(path, b"whole")
    assert not write_once(path, b"second")
    assert path.read_bytes() == b"whole"
    assert names(tmp_path) == ["x.png"]


def test_an_empty_file_whose_writer_lives_is_left_to_it(tmp_path, no_hard_links):
    path = tmp_path / "x.png"
    path.touch()
    writer = threading.Timer(0.3, write_atomically, (path, b"first"))
    writer.start()
    assert not write_once(path, b"second")
    writer.join()
    assert path.read_bytes() == b"first"


def test_processes_that_write_side_by_side_lose_nothing(tmp_path):
    program = (
        "import sys; from pathlib import Path; from ldm.inference.files import NumberedFiles\n"
        "out = NumberedFiles(Path(sys.argv[1]), '{:05}.png')\n"
        "for i in range(25): out.write(f'{sys.argv[2]} {i}'.encode())"
    )
    writers = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path), str(who)]) for who in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert names(tmp_path) == [f"{number:05}.png" for number in range(75)]
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 75


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(full_disk):
    before = names(full_disk)
    with pytest.raises(OutputError, match=r"cannot write .*x\.png: No space left on device; free some space"):
        write_atomically(full_disk / "x.png", b"\1" * 50_000)
    with pytest.raises(OutputError, match=r"cannot write .*00000\.png: No space left on device"):
        NumberedFiles(full_disk, "{:05}.png").write(b"\1" * 50_000)
    assert names(full_disk) == before


def test_a_full_disk_keeps_the_file_that_was_there(full_disk):
    (full_disk / "x.png").write_bytes(b"old")
    with pytest.raises(OutputError):
        write_atomically(full_disk / "x.png", b"\1" * 50_000)
    assert (full_disk / "x.png").read_bytes() == b"old"


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path):
    (tmp_path / "out").write_bytes(b"")
    with pytest.raises(OutputError, match="a file stands where a folder must be"):
        make_folder(tmp_path / "out")
    with pytest.raises(OutputError, match="a file stands where a folder must be"):
        make_folder(tmp_path / "out" / "samples")


def test_a_folder_that_refuses_writing_is_found_before_the_work(tmp_path):
    with pytest.raises(OutputError, match="cannot write /proc/1/outputs: "):
        make_folder(Path("/proc/1/outputs"))
    assert make_folder(tmp_path / "new") == tmp_path / "new"
    assert names(tmp_path / "new") == []


def test_sweeping_takes_what_was_begun_and_nothing_else(tmp_path):
    for name in ("a.png", ".a.png.0123456789ab.part", ".b.png.0123456789ab.part", ".hidden", "x.part"):
        (tmp_path / name).write_bytes(b"x")
    assert files.sweep(tmp_path, {"a.png"}) == 1
    assert names(tmp_path) == [".b.png.0123456789ab.part", ".hidden", "a.png", "x.part"]
    assert files.sweep(tmp_path) == 1
    assert files.sweep(tmp_path / "nowhere") == 0


def test_what_cannot_be_swept_stays_and_ends_nobody(tmp_path, monkeypatch):
    (tmp_path / ".a.png.0123456789ab.part").write_bytes(b"x")

    def refuse(path):
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(files.os, "unlink", refuse)
    assert files.sweep(tmp_path) == 0
    monkeypatch.setattr(files.os, "listdir", refuse)
    assert files.sweep(tmp_path) == 0


def test_sweeping_can_leave_what_may_still_be_written(tmp_path):
    for name, age in ((".a.0123456789ab.part", 30), (".a.0123456789ac.part", 0)):
        (tmp_path / name).write_bytes(b"x")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    assert files.sweep(tmp_path, {"a"}, older=10.0) == 1
    assert names(tmp_path) == [".a.0123456789ac.part"]


@pytest.mark.parametrize(("write", "step"), [(write_once, "link"), (write_atomically, "replace")])
def test_a_writer_whose_part_is_swept_away_writes_again(tmp_path, monkeypatch, write, step):
    name, swept = getattr(os, step), []

    def sweep_first(source, target):
        if not swept:
            swept.append(files.sweep(tmp_path))
        name(source, target)

    monkeypatch.setattr(files.os, step, sweep_first)
    write(tmp_path / "a", b"whole")
    assert swept == [1]
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"whole"


def test_a_stale_handle_of_a_shared_file_system_is_tried_again(tmp_path, monkeypatch):
    replace, failures = os.replace, [OSError(errno.ESTALE, "Stale file handle")] * 2

    def stale(source, target):
        if failures:
            raise failures.pop()
        replace(source, target)

    monkeypatch.setattr(os, "replace", stale)
    write_atomically(tmp_path / "a", b"whole")
    assert (tmp_path / "a").read_bytes() == b"whole"
