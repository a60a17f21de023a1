"""A run is proven only when everything that the plan names is there, once and as planned, and nothing else is."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from jobs.proof.findings import KEPT, Fault, Findings, format_findings
from jobs.proof.verify import verify_run
from jobs.rundir import RunDir
from jobs.spec import REHEARSAL
from jobs.storage.formats import parameters_text
from jobs.storage.pack import pack_run
from jobs.submit.prepare import Prepared
from jobs.worker.rehearsal import generate
from jobs.worker.worker import Worker, run_shard
from ldm.errors import GenerationError
from ldm.inference.images import encode
from tests.jobs.support import FakeModel, jobs, prepare, sha256

ONE = Worker("one", "fake", batch_size=2)
KINDS = [("folder", "png"), ("folder", "jpeg"), ("webdataset", "webp"), ("webdataset", "png")]


def make(folder: Path, output: str = "folder", format: str = "png", model=None, count: int = 6) -> Prepared:
    """A finished run of rehearsal cards, two shards of three."""
    prepared = prepare(folder, "images_per_shard=3", f"output={output}", f"format={format}", "quality=90", count=count)
    for shard in range(prepared.info.plan.shards):
        run_shard(prepared.run.shard(shard), prepared.run, model or cards(format), ONE)
    if output == "webdataset":
        pack_run(prepared.run, prepared.info)
    return prepared


def cards(format: str = "png"):
    return lambda requests: generate(requests, format=format, quality=90)


def problems(prepared: Prepared, processes: int = 1) -> list[str]:
    return verify_run(prepared.run, prepared.info, processes).problems


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def replace_picture(run: RunDir, index: int, data: bytes) -> None:
    """Another picture with a record that fits it, as only a wrong model would make them."""
    path = run.image_path(run.shard(index // 3).images[index % 3].file)
    edit(run.records_path(index // 3), sha256(path.read_bytes()), sha256(data))
    path.write_bytes(data)


@pytest.mark.parametrize(("output", "format"), KINDS)
def test_a_run_that_is_whole_is_proven(tmp_path, output, format):
    prepared = make(tmp_path, output, format)
    findings = verify_run(prepared.run, prepared.info)
    assert (findings.problems, findings.proven, findings.whole) == ([], 6, True)
    written = json.loads((prepared.run.path / "verify.json").read_text())
    assert (written["whole"], written["planned"], written["proven"], written["problems"]) == (True, 6, 6, [])
    assert written["plan_id"] == prepared.info.plan.plan_id


def test_several_processes_find_the_same(tmp_path):
    prepared = make(tmp_path)
    prepared.run.image_path("samples/000/000004.png").unlink()
    assert problems(prepared, processes=2) == problems(prepared) != []


def test_a_picture_that_is_gone_is_missing(tmp_path):
    prepared = make(tmp_path)
    prepared.run.image_path("samples/000/000004.png").unlink()
    assert problems(prepared) == ["missing: picture 4 is recorded, and nowhere: samples/000/000004.png"]


def test_a_shard_that_was_not_begun_is_missing(tmp_path):
    prepared = prepare(tmp_path, "images_per_shard=3")
    run_shard(prepared.run.shard(1), prepared.run, cards(), ONE)
    assert problems(prepared) == [f"missing: picture {index} has not been made" for index in range(3)]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda data: data[:60] + bytes([data[60] ^ 1]) + data[61:], "has another sha256 than was recorded"),
        (lambda data: data[:-20], "has another sha256 than was recorded"),
        (lambda data: b"", "has another sha256 than was recorded"),
    ],
    ids=["a changed byte", "truncated", "empty"],
)
def test_a_picture_that_changed_after_it_was_made_is_damaged(tmp_path, change, found):
    prepared = make(tmp_path)
    path = prepared.run.image_path("samples/000/000002.png")
    path.write_bytes(change(path.read_bytes()))
    assert problems(prepared) == [f"damaged: samples/000/000002.png {found}"]


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_a_picture_that_was_cut_when_it_was_written_does_not_decode(tmp_path, format):
    """Its record describes the cut file, as when the bytes were lost between the model and the disk."""
    prepared = make(tmp_path, format=format)
    image = prepared.run.shard(0).images[2]
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    text = parameters_text(image.request, model=REHEARSAL, checkpoint_sha256="")
    replace_picture(prepared.run, 2, encode(noise, format, text)[:-2000])
    [problem] = problems(prepared)
    assert problem.startswith(f"damaged: {image.file} does not decode: ")


def test_what_is_no_picture_at_all_does_not_decode(tmp_path):
    prepared = make(tmp_path)
    replace_picture(prepared.run, 2, b"<html>quota exceeded</html>")
    [problem] = problems(prepared)
    assert problem.startswith("damaged: samples/000/000002.png does not decode: ")


def card(prepared: Prepared, index: int, size=(64, 64), text=None, format="png") -> bytes:
    request = prepared.run.shard(index // 3).images[index % 3].request
    text = parameters_text(request, model=REHEARSAL, checkpoint_sha256="") if text is None else text
    return encode(np.zeros((size[1], size[0], 3), np.uint8), format, text)


def test_a_picture_that_cannot_be_read_is_damaged_and_the_rest_is_looked_at(tmp_path):
    prepared = make(tmp_path)
    for file in ("samples/000/000000.png", "samples/000/000005.png"):
        path = prepared.run.image_path(file)
        path.unlink()
        path.mkdir()
    first, last = problems(prepared)
    assert first.startswith(f"damaged: cannot read {prepared.run.path}/samples/000/000000.png: ")
    assert "000005.png" in last


def test_a_look_that_is_cut_short_leaves_no_earlier_verdict(tmp_path, monkeypatch):
    prepared = make(tmp_path)
    assert problems(prepared) == []
    assert (prepared.run.path / "verify.json").exists()
    monkeypatch.setattr("jobs.proof.verify.check_plan", lambda *words: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        problems(prepared)
    assert not (prepared.run.path / "verify.json").exists()


def test_a_picture_of_another_size_or_format_is_damaged(tmp_path):
    prepared = make(tmp_path)
    replace_picture(prepared.run, 0, card(prepared, 0, size=(32, 64)))
    replace_picture(prepared.run, 1, card(prepared, 1, format="webp"))
    assert problems(prepared) == [
        "damaged: samples/000/000000.png has 32 x 64 px, planned are 64 x 64",
        "damaged: samples/000/000001.png is a WEBP, planned is a PNG",
    ]


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("Seed: 42", "Seed: 43", "says Seed '43', planned is '42'"),
        ("Steps: 1", "Steps: 2", "says Steps '2', planned is '1'"),
        ("Sampler: PLMS", "Sampler: DDIM", "says Sampler 'DDIM', planned is 'PLMS'"),
        ("Size: 64x64", "Size: 64x72", "says Size '64x72', planned is '64x64'"),
        ("picture number 0", "picture number 1", "says prompt 'picture number 1', planned is 'picture number 0'"),
        ("\nSteps", "\nNegative prompt: blur\nSteps", "says negative prompt 'blur', planned is ''"),
        ("Model: rehearsal", "Model: sd-v1", "says Model 'sd-v1', planned is 'rehearsal'"),
    ],
)
def test_a_picture_of_other_parameters_is_damaged(tmp_path, old, new, found):
    prepared = make(tmp_path)
    text = parameters_text(prepared.run.shard(0).images[0].request, model=REHEARSAL, checkpoint_sha256="")
    assert old in text
    replace_picture(prepared.run, 0, card(prepared, 0, text=text.replace(old, new)))
    assert problems(prepared) == [f"damaged: samples/000/000000.png {found}"]


def test_more_parameters_than_were_planned_are_no_fault(tmp_path):
    prepared = make(tmp_path)
    text = parameters_text(prepared.run.shard(0).images[0].request, model=REHEARSAL, checkpoint_sha256="")
    replace_picture(prepared.run, 0, card(prepared, 0, text=f"{text}, Safety: checked"))
    assert problems(prepared) == []


def test_prompts_that_look_like_parameters_are_told_from_them(tmp_path):
    path = tmp_path / "hard.jsonl"
    prompts = ["a\nNegative prompt: b", "Steps: 1, Sampler: x, Seed: 2", "", "\N{LION FACE}", "x" * 9000]
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    done = jobs("submit", str(path), "model=rehearsal", "steps=1", "output=webdataset", "format=jpeg", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    [run] = (tmp_path / "outputs").glob("hard-*")
    done = jobs("verify", str(run), cwd=tmp_path)
    assert (done.returncode, done.stdout.splitlines()[-1][:7]) == (0, "proven:"), done.stdout


def test_records_must_be_one_each_and_of_this_plan(tmp_path):
    prepared = make(tmp_path)
    path = prepared.run.records_path(0)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], lines[0], *lines[1:]]))
    assert problems(prepared) == ["record: shard-00000.jsonl:2 is a second record of picture 0"]
    path.write_text("".join([lines[0].replace('"index":0', '"index":5'), *lines[1:]]))
    assert problems(prepared) == [
        "record: shard-00000.jsonl:1 is about picture 5, which is not in this shard",
        "record: shard-00000.jsonl says that the shard is done, and has no record of picture 0",
    ]
    path.write_text("".join([lines[0][:40] + "\n", *lines[1:]]))
    assert problems(prepared)[0].startswith("record: shard-00000.jsonl:1 cannot be read: ")
    path.write_text("".join(lines[:-1]))
    assert problems(prepared) == ["record: shard-00000.jsonl does not end with its sum"]


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ('"seed":42', '"seed":7', "has seed 7, planned is 42"),
        ('"prompt":"picture number 0"', '"prompt":"b"', "has prompt 'b', planned is 'picture number 0'"),
        ("000000.png", "000001.png", "has file 'samples/000/000001.png', planned is 'samples/000/000000.png'"),
    ],
)
def test_a_record_must_agree_with_the_plan(tmp_path, old, new, found):
    prepared = make(tmp_path)
    edit(prepared.run.records_path(0), old, new)
    assert problems(prepared) == [f"record: the record of picture 0 {found}"]


def test_a_record_of_another_request_is_found(tmp_path):
    prepared = make(tmp_path)
    image = prepared.run.shard(0).images[0]
    edit(prepared.run.records_path(0), image.request_id, "0" * 16)
    assert problems(prepared) == [
        f"record: the record of picture 0 has request_id '{'0' * 16}', planned is '{image.request_id}'"
    ]


def test_what_the_plan_does_not_name_is_a_stray(tmp_path):
    prepared = make(tmp_path)
    run = prepared.run
    strays = [
        "samples/x.png",
        "samples/000/000006.png",
        "samples/000/notes.txt",
        "samples/00000-1.tar",
        "samples/001/y",
    ]
    strays += ["samples/index.json", "records/shard-00002.jsonl"]
    for name in strays:
        (run.path / name).parent.mkdir(exist_ok=True)
        (run.path / name).write_bytes(b"x")
    (run.path / "samples/000/.000001.png.0123456789ab.part").write_bytes(b"x")
    found = problems(prepared)
    names = ["001", "x.png", "00000-1.tar", "index.json", "000/000006.png", "000/notes.txt", "shard-00002.jsonl"]
    assert len(found) == len(names) + 1
    assert all(any(f"{name} is nothing that was planned" in line for line in found) for name in names)
    assert any(".000001.png.0123456789ab.part is the part of a file" in line for line in found)


def test_a_plan_with_an_edited_line_is_found(tmp_path):
    prepared = make(tmp_path)
    edit(prepared.run.plan_path, "picture number 4", "picture number 9")
    found = problems(prepared)
    assert found[0].startswith("plan: plan.jsonl:5 was edited: its request_id is not that of its request")
    assert any(line.startswith("record: the record of picture 4 has prompt") for line in found)


def test_a_plan_that_was_edited_with_care_is_found_by_its_id(tmp_path):
    prepared = make(tmp_path)
    run = prepared.run
    (tmp_path / "other").mkdir()
    other = prepare(tmp_path / "other", "images_per_shard=3", "seed=7").run
    shutil.copy(other.plan_path, run.plan_path)
    assert "plan: plan.jsonl is another plan than that of run.yaml: its id differs" in problems(prepared)


def test_a_plan_that_was_cut_is_found(tmp_path):
    prepared = make(tmp_path)
    lines = prepared.run.plan_path.read_text().splitlines(keepends=True)
    prepared.run.plan_path.write_text("".join(lines[:2]))
    found = problems(prepared)
    assert "plan: plan.jsonl has 2 pictures, 6 were planned" in found
    assert any(line.startswith("plan: shard 1 cannot be read") for line in found)
    prepared.run.plan_path.write_text("".join([*lines[:2], lines[2][:30] + "\n", *lines[3:]]))
    assert problems(prepared)[0].startswith("plan: plan.jsonl:3 cannot be read")


def test_dropped_and_flagged_pictures_are_named_and_are_no_problem(tmp_path):
    model = Choosy(flag=["picture number 1"], drop=["picture number 4"])
    prepared = make(tmp_path, model=model)
    findings = verify_run(prepared.run, prepared.info)
    assert (findings.whole, findings.proven, findings.flagged, findings.dropped) == (True, 5, [1], [4])
    prepared.run.image_path("samples/000/000004.png").write_bytes(b"x")
    assert problems(prepared) == ["stray: samples/000/000004.png is there, and picture 4 was dropped"]


class Choosy(FakeModel):
    """Makes true cards of what it does not drop."""

    def _picture(self, request):
        picture = super()._picture(request)
        return dataclasses.replace(picture, encode=picture.encode and generate([request])[0].encode)


def test_failed_pictures_are_named_and_keep_a_run_from_being_proven(tmp_path):
    model = Choosy(fail=["picture number 2", "picture number 5"])
    prepared = make(tmp_path, model=model)
    for _ in range(2):
        run_shard(prepared.run.shard(0), prepared.run, model, ONE)
    findings = verify_run(prepared.run, prepared.info)
    assert (findings.problems, findings.failed, findings.given_up) == ([], [5], [2])
    assert not findings.whole
    lines = format_findings(findings, 6, "RUN", 20)
    assert lines == [
        "pictures 5: failed, to be tried again by python -m jobs resume RUN",
        "pictures 2: given up after failing, until python -m jobs retry --failed RUN",
        "not proven: 4 of 6 pictures are there, whole and as planned; 0 flagged, 0 dropped, 2 failed, 0 problems",
    ]


def rewrite_tar(path: Path, change) -> None:
    """The tar with its members (name, content) as `change` returns them."""
    with tarfile.open(path) as file:
        entries = [(member.name, file.extractfile(member).read()) for member in file]
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as file:
        for name, content in change(entries):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (
            lambda e: [*e[:1], (e[1][0], e[1][1][:-9]), *e[2:]],
            ": 000000000 has another sha256 than was recorded",
        ),
        (
            lambda e: [*e[:2], (e[2][0], b"x"), *e[3:]],
            ": 000000000 has another prompt in its .txt than was planned",
        ),
        (
            lambda e: [(e[0][0], e[0][1].replace(b"42", b"43")), *e[1:]],
            ": 000000000 has another .json than was planned",
        ),
        (lambda e: e[1:], ": 000000000 has .png, .txt, planned are .json, .png, .txt"),
        (lambda e: [*e, ("000000009.png", b"x")], " holds '000000009', which does not belong there"),
        (lambda e: [*e, *e[:3]], " holds '000000000', which does not belong there"),
    ],
    ids=["cut", "prompt", "json", "no json", "stray", "twice"],
)
def test_a_tar_must_hold_each_sample_as_planned(tmp_path, change, found):
    prepared = make(tmp_path, "webdataset")
    rewrite_tar(prepared.run.tar_path(0), change)
    lines = problems(prepared)
    assert [line for line in lines if line.startswith("damaged")] == [f"damaged: 00000.tar{found}"]


def test_a_sample_that_is_not_in_the_tar_is_missing_and_the_index_is_wrong(tmp_path):
    prepared = make(tmp_path, "webdataset")
    rewrite_tar(prepared.run.tar_path(1), lambda entries: entries[3:])
    assert problems(prepared) == [
        "packing: index.json does not say of 00001.tar what it holds",
        "missing: picture 3 is recorded, and nowhere: samples/000/000003.png",
    ]


def test_a_torn_tar_is_one_problem_and_not_one_a_picture(tmp_path):
    prepared = make(tmp_path, "webdataset")
    tar = prepared.run.tar_path(1)
    tar.write_bytes(tar.read_bytes()[:2000])
    [problem] = problems(prepared)
    assert problem.startswith(f"damaged: {tar} is damaged: ")


def test_a_picture_in_a_tar_and_beside_it_is_for_the_packer(tmp_path):
    prepared = make(tmp_path, "webdataset")
    image = prepared.run.shard(0).images[1]
    path = prepared.run.image_path(image.file)
    path.parent.mkdir()
    path.write_bytes(generate([image.request])[0].encode())
    assert problems(prepared) == ["packing: samples/000/000001.png is there, and in a tar too"]
    assert pack_run(prepared.run, prepared.info) == []
    assert problems(prepared) == []


def test_a_shard_that_is_done_and_not_packed_is_for_the_packer(tmp_path):
    prepared = prepare(tmp_path, "images_per_shard=6", "output=webdataset")
    run_shard(prepared.run.shard(0), prepared.run, cards(), ONE)
    assert problems(prepared) == ["packing: shard 0 is done, and 6 of its pictures are in no tar"]
    prepared.run.index_path.write_text('{"shardlist": [{"url": "00000.tar"}]}')
    assert "packing: index.json names 00000.tar, which is not there" in problems(prepared)


@pytest.mark.parametrize("output", ["folder", "webdataset"])
def test_what_verify_says_to_type_mends_the_run(tmp_path, output):
    """As a user: a lost and a torn file, the words that verify prints, and a run that is proven afterwards."""
    prepared = make(tmp_path, output)
    run = prepared.run
    torn = run.image_path("samples/000/000001.png") if output == "folder" else run.tar_path(0)
    torn.write_bytes(torn.read_bytes()[:-2000] + b"torn" * 500)
    lost = run.image_path("samples/000/000004.png") if output == "folder" else run.tar_path(1)
    lost.unlink()
    before = jobs("verify", str(run.path), cwd=tmp_path)
    assert before.returncode == 4
    assert f"missing: python -m jobs resume {run.path.relative_to(tmp_path)}" in before.stdout.splitlines()
    assert "damaged: remove the pictures and tars that are named, then: python -m jobs resume" in before.stdout
    assert before.stdout.splitlines()[-1].startswith("not proven: ")
    torn.unlink()
    assert jobs("resume", str(run.path), cwd=tmp_path).returncode == 0
    after = jobs("verify", str(run.path), "--processes=2", cwd=tmp_path)
    assert (after.returncode, after.stdout) == (
        0,
        "proven: 6 of 6 pictures are there, whole and as planned; 0 flagged, 0 dropped, 0 failed, 0 problems\n",
    )


def test_the_command_packs_a_run_of_folders(tmp_path):
    prepared = make(tmp_path, model=Choosy(fail=["picture number 5"]))
    done = jobs("pack", str(prepared.run.path), cwd=tmp_path)
    assert done.returncode == GenerationError.exit_code
    assert done.stdout.splitlines()[0].startswith("1 shard of 2 packed in outputs/")
    assert "1 shard not complete yet: python -m jobs resume outputs/" in done.stdout
    run_shard(prepared.run.shard(1), prepared.run, cards(), ONE)
    assert jobs("pack", str(prepared.run.path), cwd=tmp_path).returncode == 0
    assert problems(prepared) == []


def test_nonsense_is_refused(tmp_path):
    done = jobs("verify", str(tmp_path), cwd=tmp_path)
    assert (done.returncode, "is no run folder" in done.stderr) == (2, True)
    done = jobs("verify", str(tmp_path), "--processes=0", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, "jobs: error: --processes must be at least 1, got 0\n")


def test_memory_does_not_grow_with_the_run(tmp_path):
    """What is kept of one picture, its request and its record, would be over 1.5 KiB."""
    peaks = []
    for count in (30, 300):
        folder = tmp_path / str(count)
        folder.mkdir()
        prepared = prepare(folder, "images_per_shard=10", count=count)
        for shard in range(prepared.info.plan.shards):
            run_shard(prepared.run.shard(shard), prepared.run, cards(), ONE)
        assert verify_run(prepared.run, prepared.info).whole, "and what is imported and cached is there from now on"
        tracemalloc.start()
        verify_run(prepared.run, prepared.info)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 270 * 750


def test_many_problems_are_counted_and_the_first_are_shown():
    findings = Findings()
    for index in range(KEPT + 500):
        findings.add(Fault.MISSING, f"picture {index} has not been made")
    lines = format_findings(findings, 2000, "RUN", 20)
    assert len(findings.problems) == KEPT
    assert lines[19:] == [
        "missing: picture 19 has not been made",
        f"and {KEPT + 480} problems more; the first {KEPT} are in verify.json",
        "missing: python -m jobs resume RUN",
        "not proven: 0 of 2000 pictures are there, whole and as planned; "
        f"0 flagged, 0 dropped, 0 failed, {KEPT + 500} problems",
    ]
    other = Findings()
    other.merge(findings)
    other.merge(findings)
    assert (len(other.problems), other.faults[Fault.MISSING]) == (KEPT, 2 * KEPT + 1000)
