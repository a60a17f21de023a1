"""report.html is one file that shows prompts to the letter and asks for nothing; report.json has the numbers."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Dict, List, Optional, Tuple

import pytest

from jobs.attendance import attend
from jobs.config import read_settings
from jobs.pages.html_report import Written, seconds_text, write_report
from jobs.submit.prepare import Prepared, prepare_run
from jobs.worker.rehearsal import generate
from jobs.worker.worker import Worker, run_shard
from ldm.errors import GenerationError, OutputError
from tests.jobs.support import REHEARSAL, jobs, prepare

WORKER = Worker(name="one/7_0/12", device="a card", batch_size=4)
HOSTILE = [
    "<script>alert('x')</script>",
    '</script><img src=x onerror="alert(1)">',
    "${x} {{ 7 * 7 }} {% raw %} `y` \\u003c",
    "<!-- --> <![CDATA[ ]]> &amp; &lt;b&gt; \"quotes\" 'single'",
    "一只戴着草帽的猫,水墨画 🐈 مرحبا",
    "line\u2028and\u2029paragraph",
    "a" * 5000,
]


class Reader(HTMLParser):
    """What a browser would make of a page: its tags, and the text of its scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: List[Tuple[str, Dict[str, Optional[str]]]] = []
        self.inside: List[Tuple[Dict[str, Optional[str]], str]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] in ("script", "style"):
            self.inside.append((self.tags[-1][1], data))
            self.tags.append(("", {}))
        else:
            self.text += data

    def values(self):
        """What the page knows of its pictures."""
        [text] = [text for attributes, text in self.inside if attributes.get("type") == "application/json"]
        return json.loads(text)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def made(folder: Path, *words: str, count: int = 6, shards: Optional[int] = None) -> Prepared:
    """A run whose first `shards` shards are made, all of them if that is None."""
    prepared = prepare(folder, *words, count=count)
    for shard in range(prepared.info.plan.shards if shards is None else shards):
        run_shard(prepared.run.shard(shard), prepared.run, generate, WORKER)
    return prepared


def read(written: Written) -> Tuple[Reader, Dict[str, object]]:
    return Reader(written.html.read_text(encoding="utf-8")), json.loads(written.json.read_text(encoding="utf-8"))


def hostile_run(folder: Path) -> Prepared:
    path = folder / "hostile.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt, "negative_prompt": prompt}) + "\n" for prompt in HOSTILE))
    prepared = prepare_run(path, read_settings([*REHEARSAL, f"outputs={folder}"]))
    run_shard(prepared.run.shard(0), prepared.run, generate, WORKER)
    return prepared


def test_prompts_are_shown_to_the_letter_and_run_nothing(tmp_path):
    prepared = hostile_run(tmp_path)
    page, numbers = read(write_report(prepared.run, prepared.info))
    assert [picture["prompt"] for picture in page.values()["pictures"]] == HOSTILE
    assert [picture["negative_prompt"] for picture in page.values()["pictures"]] == HOSTILE
    assert all(prompt in page.text for prompt in HOSTILE[:5])
    assert (page.count("script"), page.count("style"), page.count("img")) == (2, 1, len(HOSTILE))
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert numbers["done"] == len(HOSTILE)


def test_a_reason_of_a_failure_is_shown_to_the_letter(tmp_path):
    prepared = prepare(tmp_path, "images_per_shard=6")

    def fail(requests):
        raise GenerationError(f"no picture: {HOSTILE[1]}")

    run_shard(prepared.run.shard(0), prepared.run, fail, WORKER)
    page, numbers = read(write_report(prepared.run, prepared.info))
    assert page.count("script") == 2
    assert f"no picture: {HOSTILE[1]}" in page.text
    assert [failure["error"] for failure in numbers["failures"]] == [f"no picture: {HOSTILE[1]}"] * 6
    assert numbers["failures"][2]["prompt"] == "picture number 2"
    assert numbers["failures"][2]["seed"] == 44


def test_the_page_asks_for_nothing_and_may_not(tmp_path):
    prepared = made(tmp_path)
    page, _ = read(write_report(prepared.run, prepared.info))
    addresses = [attributes.get(name) for _, attributes in page.tags for name in ("src", "href", "srcset", "data")]
    assert all(re.match(r"data:|#", address) for address in addresses if address)
    assert not re.search(r"url\(|@import|https?:", "".join(text for _, text in page.inside))
    [policy] = [attributes["content"] for _, attributes in page.tags if "http-equiv" in attributes]
    assert policy.startswith("default-src 'none'; img-src data:; ")
    for attributes, text in page.inside:
        if "type" not in attributes:
            digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
            assert f"'sha256-{digest}'" in policy
    assert not [attributes for _, attributes in page.tags if "style" in attributes]


def test_the_numbers_are_those_of_the_run(tmp_path):
    prepared = made(tmp_path, "cluster.price_per_card_hour=3600", "cluster.currency=CNY")
    attendant = attend(prepared.run.workers, {"SLURMD_NODENAME": "n1", "SLURM_JOB_ID": "7"}, WORKER.name)
    attendant.update(loading=0.5)
    _, numbers = read(write_report(prepared.run, prepared.info))
    assert (numbers["planned"], numbers["done"], numbers["failed"], numbers["missing"]) == (6, 6, 0, 0)
    assert numbers["complete"] is True
    assert numbers["currency"] == "CNY"
    assert numbers["cost_per_image"] == pytest.approx(numbers["cost"] / 6)
    assert numbers["seconds"]["count"] == 6
    assert 0 < numbers["seconds"]["p50"] <= numbers["seconds"]["p95"]
    [worker], [node] = numbers["workers"], numbers["nodes"]
    assert (worker["name"], worker["node"], worker["made"], worker["loading"]) == (WORKER.name, "n1", 6, 0.5)
    assert (node["name"], node["workers"], node["made"]) == ("n1", 1, 6)


def test_an_unfinished_run_is_reported_as_far_as_it_is(tmp_path):
    prepared = made(tmp_path, shards=2)
    page, numbers = read(write_report(prepared.run, prepared.info))
    assert "This run is not finished: 4 of 6 pictures were done (67 %)" in page.text
    assert (numbers["complete"], numbers["missing"], page.count("img")) == (False, 2, 4)


def test_a_run_without_a_picture_has_a_page_that_says_so(tmp_path):
    prepared = prepare(tmp_path)
    page, numbers = read(write_report(prepared.run, prepared.info))
    assert "There is no picture yet." in page.text
    assert (numbers["seconds"], numbers["done"], page.count("img")) == (None, 0, 0)


def test_a_sample_is_shown_of_more_pictures_than_the_page_may_hold(tmp_path):
    prepared = made(tmp_path, "images_per_shard=50", count=100)
    written = write_report(prepared.run, prepared.info, 20)
    page, numbers = read(written)
    assert (written.shown, written.found, page.count("img")) == (20, 100, 20)
    assert "20 of 100 pictures are shown: an even sample of the run" in page.text
    assert numbers["seconds"]["count"] == 100
    indices = [picture["index"] for picture in page.values()["pictures"]]
    assert indices == list(range(0, 100, 5))


def test_a_picture_that_is_gone_or_damaged_is_named_and_the_others_are_shown(tmp_path):
    prepared = made(tmp_path)
    (prepared.run.path / "samples/000/000001.png").unlink()
    (prepared.run.path / "samples/000/000002.png").write_bytes(b"\x89PNG and no more")
    page, numbers = read(write_report(prepared.run, prepared.info))
    assert page.count("img") == 4
    assert [each["index"] for each in numbers["unreadable_pictures"]] == [1, 2]
    assert "it is no picture that can be read" in page.text


def test_pictures_in_tars_are_shown_like_those_in_folders(tmp_path):
    prepared = made(tmp_path)
    assert jobs("pack", str(prepared.run.path), cwd=tmp_path).returncode == 0
    assert not list((prepared.run.path / "samples").rglob("*.png"))
    page, _ = read(write_report(prepared.run, prepared.info))
    assert page.count("img") == 6


def test_an_older_page_stays_whole_where_there_is_no_room_for_a_new_one(tmp_path, full_disk):
    prepared = made(tmp_path, f"outputs={tmp_path}")
    before = write_report(prepared.run, prepared.info).html.read_bytes()
    run = prepared.run
    kept = full_disk / "report.html"
    kept.write_bytes(before[:1024])
    run.path = full_disk
    with pytest.raises(OutputError, match=r"cannot write .*report\.html"):
        write_report(run, prepared.info)
    assert kept.read_bytes() == before[:1024]
    assert sorted(path.name for path in full_disk.iterdir()) == ["ballast", "report.html", "report.json"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.18342, "0.183 s"), (3.14159, "3.14 s"), (45.26, "45.3 s"), (131.7, "132 s")]
)
def test_seconds_have_three_digits(seconds, text):
    assert seconds_text(seconds) == text


def test_the_command_writes_page_numbers_and_sheets_and_says_how_far_the_run_is(tmp_path):
    prepared = made(tmp_path, shards=2)
    run = prepared.run.path
    done = jobs("report", str(run), "--pictures", "3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shown = run.relative_to(tmp_path)
    assert "4 of 6 pictures done (67 %), 0 flagged, 0 failed, 2 missing" in done.stdout
    assert f"the run is not finished, the report is of what is there; rerun: python -m jobs report {run}" in done.stdout
    assert "shown are 3 of 4 pictures, an even sample; --pictures N changes it" in done.stdout
    assert re.search(rf"^page: +{shown}/report.html \(0\.\d MB\)$", done.stdout, re.MULTILINE)
    assert f"grid:     {shown}/grid-0000.png" in done.stdout
    assert {path.name for path in run.iterdir()} >= {"report.html", "report.json", "grid-0000.png"}


def test_the_command_wants_at_least_one_picture(tmp_path):
    done = jobs("report", str(tmp_path), "--pictures", "0", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, "jobs: error: --pictures must be at least 1, got 0\n")
