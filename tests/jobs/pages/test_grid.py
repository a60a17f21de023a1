"""Contact sheets show the pictures of a run in the order of the plan, large ones made smaller."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from jobs.config import read_settings
from jobs.pages import grid
from jobs.pages.grid import make_sheet, make_sheets
from jobs.submit.prepare import prepare_run
from jobs.worker.rehearsal import generate
from jobs.worker.worker import Worker, run_shard
from tests.jobs.support import prepare

WORKER = Worker(name="one", device="fake", batch_size=4)


def test_all_pictures_stand_on_the_sheet_in_the_order_of_the_plan(tmp_path):
    prepared = prepare(tmp_path)
    for shard in (2, 0, 1):
        run_shard(prepared.run.shard(shard), prepared.run, generate, WORKER)
    path = make_sheet(prepared.run, prepared.info)
    assert path == prepared.run.path / "grid-0000.png"
    with Image.open(path) as sheet:
        assert sheet.size == (6 * 66 + 2, 66 + 2)
        colours = [sheet.getpixel((2 + 66 * column, 2)) for column in range(6)]
    images = [image for shard in range(3) for image in prepared.run.shard(shard).images]
    assert colours == [tuple(bytes.fromhex(image.request_id[:6])) for image in images]


def test_without_a_picture_there_is_no_sheet(tmp_path):
    prepared = prepare(tmp_path)
    assert make_sheet(prepared.run, prepared.info) is None
    assert not (prepared.run.path / "grid-0000.png").exists()


def test_a_picture_that_somebody_took_away_is_left_out(tmp_path):
    prepared = prepare(tmp_path)
    run_shard(prepared.run.shard(0), prepared.run, generate, WORKER)
    (prepared.run.path / "samples/000/000000.png").unlink()
    path = make_sheet(prepared.run, prepared.info)
    assert path is not None
    with Image.open(path) as sheet:
        assert sheet.size == (64, 64)


def test_every_picture_stands_on_one_of_the_sheets(tmp_path, monkeypatch):
    monkeypatch.setattr(grid, "PICTURES", 4)
    prepared = prepare(tmp_path)
    for shard in range(3):
        run_shard(prepared.run.shard(shard), prepared.run, generate, WORKER)
    paths = make_sheets(prepared.run, prepared.info)
    assert [path.name for path in paths] == ["grid-0000.png", "grid-0001.png"]
    widths = []
    for path in paths:
        with Image.open(path) as sheet:
            widths.append(sheet.width)
    assert widths == [4 * 66 + 2, 2 * 66 + 2]
    assert make_sheets(prepared.run, prepared.info, 1) == paths[:1]


def test_a_damaged_picture_is_left_out_and_named(tmp_path, caplog):
    prepared = prepare(tmp_path)
    run_shard(prepared.run.shard(0), prepared.run, generate, WORKER)
    (prepared.run.path / "samples/000/000001.png").write_bytes(b"\x89PNG and no more")
    assert make_sheet(prepared.run, prepared.info) is not None
    assert "picture 1 is left out: it is no picture that can be read" in caplog.text


@pytest.mark.parametrize(
    ("height", "width", "size"), [(512, 1024, (256, 128)), (64, 32, (32, 64)), (8, 4096, (256, 1))]
)
def test_large_pictures_are_made_smaller_and_small_ones_are_not_made_larger(tmp_path, height, width, size):
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps({"prompt": "a", "height": height, "width": width}))
    prepared = prepare_run(path, read_settings(["model=rehearsal", "steps=1", f"outputs={tmp_path}"]))
    run_shard(prepared.run.shard(0), prepared.run, generate, WORKER)
    sheet = make_sheet(prepared.run, prepared.info)
    assert sheet is not None
    with Image.open(sheet) as image:
        assert image.size == size
