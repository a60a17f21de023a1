"""A probe makes a few pictures as all of them will be made, and says what all of them will take."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from jobs.config import read_settings
from jobs.rundir import RunDir
from jobs.submit import probe
from jobs.worker.measuring import Findings, Tried
from ldm.errors import RunError
from tests.jobs.support import REHEARSAL, jobs, write_prompts

WORDS = "model=rehearsal", "steps=30", "batch_size=2", "outputs=outputs"


@pytest.fixture
def probed(tmp_path):
    write_prompts(tmp_path, 50)
    done = jobs("probe", "prompts.txt", *WORDS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return done


def test_it_says_the_seconds_and_the_price_of_everything(probed):
    first, second = probed.stdout.splitlines()
    seconds = float(re.match(r"([\d.e-]+) s an image, [\d.]+ s until the first could begin", first)[1])
    assert 0.03 <= seconds < 1.0
    assert re.fullmatch(r"all 50 pictures: about \d+\.\d\d card-hours", second)


def test_it_makes_two_batches_and_leaves_them(tmp_path, probed):
    [run] = (tmp_path / "outputs").iterdir()
    assert run.name.startswith("probe-prompts-")
    assert len(list((run / "samples").rglob("*.png"))) == 4


def test_a_second_one_makes_nothing(tmp_path, probed):
    again = jobs("probe", "prompts.txt", *WORDS, cwd=tmp_path)
    assert again.stdout == probed.stdout


def test_a_probe_elsewhere_is_another_and_is_sized_by_its_own_card(tmp_path, probed):
    """The device stands for a cluster, which this machine has not."""
    again = jobs("probe", "prompts.txt", *WORDS, "device=cpu", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    names = sorted(run.name[: -len("-20240223")] for run in (tmp_path / "outputs").iterdir())
    assert names == ["probe-prompts-local", "probe-prompts-local-cpu"]
    assert "/probe-prompts-local-cpu-" in again.stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["cluster=scnet-dcu"], "scnet-dcu-kshdtest-dcu"),
        (["cluster=scnet-dcu", "cluster.gres=gpu:a100", "cluster.partition=a b"], "scnet-dcu-a-b-gpu-a100"),
    ],
)
def test_where_a_probe_is_made_is_in_its_name(words, expected):
    assert probe._place(read_settings(words)) == expected


def test_submit_sizes_its_shards_after_it(tmp_path, probed):
    """0.03 s a picture: all fifty are less than a quarter of an hour."""
    run = jobs("plan", "prompts.txt", *WORDS, "task_min=1", cwd=tmp_path).stdout.strip()
    assert RunDir(tmp_path / run).info().plan.images_per_shard == 50


def test_a_probe_that_makes_no_picture_says_where_to_look(tmp_path, monkeypatch):
    monkeypatch.setattr(probe, "_make", lambda *_: None)
    settings = read_settings([*REHEARSAL, f"outputs={tmp_path / 'outputs'}"])
    with pytest.raises(RunError, match=r"the probe made no picture; see python -m jobs logs .* --failed"):
        list(probe.probe(write_prompts(tmp_path), settings, lambda words: None))


def findings(*seconds, most=None):
    return Findings("gpu X, float16", 512, 768, tuple(Tried(2**i, each) for i, each in enumerate(seconds)), most)


def test_the_quickest_batch_size_is_said_with_what_to_type():
    lines = list(probe.advice(findings(0.05, 0.04, 0.02, most=23), 2, Path("my prompts.txt")))
    assert lines == [
        "pictures at once: ms a picture and step, 768x512 px, gpu X, float16: 1: 50, 2: 40, 4: 20",
        "there is memory for 23 pictures at once",
        "quickest: python -m jobs submit 'my prompts.txt' batch_size=4, 2.00 times as quick as batch_size=2",
    ]


@pytest.mark.parametrize(
    ("planned", "said"), [(2, "batch_size=2 is as quick as any"), (4, "batch_size=4 is as quick as any")]
)
def test_a_batch_size_that_is_good_may_stay(planned, said):
    assert list(probe.advice(findings(0.05, 0.02, 0.0202), planned, Path("a.txt")))[-1] == said


def test_a_batch_size_that_was_not_tried_is_compared_with_nothing():
    assert list(probe.advice(findings(0.05, 0.02), 3, Path("a.txt")))[-1] == (
        "quickest: python -m jobs submit a.txt batch_size=2"
    )


def test_the_shipped_model_is_probed_here_with_its_batches(tmp_path):
    """The whole way on a CPU, whose numbers say nothing about a card."""
    write_prompts(tmp_path, 3)
    words = ["model=emoji-v1", "steps=2", "batch_size=1", "outputs=outputs", "device=cpu"]
    done = jobs("probe", "prompts.txt", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert re.match(
        r"pictures at once: ms a picture and step, 64x64 px, cpu .*, \w+: 1: [\d.e+]+, 2: [\d.e+]+$", lines[2]
    )
    assert re.match(
        r"batch_size=1 is as quick as any|quickest: python -m jobs submit prompts.txt batch_size=2, ", lines[3]
    )
    assert jobs("probe", "prompts.txt", *words, cwd=tmp_path).stdout == done.stdout, "what was found stays"
