"""The command that measures the small model, from its options to the report."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.training import emoji
from ldm.training.acceptance import acceptance_tasks
from scripts import evaluate_emoji

SCRIPT = Path(evaluate_emoji.__file__)
MIDDLE = emoji.Placement(0.75, 0.5, 0.5)


def painted(tasks):
    pictures = emoji.EmojiPictures(emoji.load_sprites())
    return [pictures.picture(task.object_index, task.colour_index, MIDDLE).pixels for task in tasks]


def paint_what_is_asked(prompts, options):
    tasks = acceptance_tasks()[: len(prompts)]
    assert prompts == [task.prompt for task in tasks]
    return painted(tasks)


def paint_the_next_prompt(prompts, options):
    return painted(acceptance_tasks()[1 : len(prompts) + 1])


def test_a_model_that_paints_what_is_asked_is_accepted(tmp_path, capsys):
    assert evaluate_emoji.main(["--limit", "6", "--out", str(tmp_path / "new")], paint_what_is_asked) == 0
    table = capsys.readouterr().out
    assert "| all | 6 | 100.0 % | 100.0 % | 100.0 % |" in table
    assert "| held out | 3 | 100.0 % | 100.0 % | 100.0 % |" in table
    report = json.loads((tmp_path / "new" / "report.json").read_text())
    assert report["accepted"] is True
    assert report["steps"] == 50
    assert [picture["seed"] for picture in report["pictures"]] == [42, 43, 44, 45, 46, 47]
    assert report["pictures"][0]["prompt"] == acceptance_tasks()[0].prompt


def test_a_model_that_paints_something_else_is_not(tmp_path):
    assert evaluate_emoji.main(["--limit", "6", "--out", str(tmp_path)], paint_the_next_prompt) == 1
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["accepted"] is False
    assert report["shares"]["all"]["object_top1"] == 0
    assert report["pictures"][0]["guesses"][0] in acceptance_tasks()[1].prompt


def test_the_grids_show_the_pictures(tmp_path):
    evaluate_emoji.main(["--limit", "3", "--out", str(tmp_path)], paint_what_is_asked)
    for name in ("grid.png", "grid-all.png"):
        page = np.asarray(Image.open(tmp_path / name))
        colour = emoji.COLOURS[emoji.COLOUR_NAMES[acceptance_tasks()[0].colour_index]]
        assert (page == colour).all(axis=-1).sum() > 1000, name


def test_nothing_is_written_unless_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evaluate_emoji.main(["--limit", "2"], paint_what_is_asked)
    assert list(tmp_path.iterdir()) == []


def test_a_picture_without_an_object_is_labelled_as_plain():
    task = acceptance_tasks()[0]
    pixels = np.full((64, 64, 3), emoji.COLOURS["pink"], dtype=np.uint8)
    (outcome,) = evaluate_emoji.judge_pictures(evaluate_emoji.Judge([]), [task], [pixels])
    label = evaluate_emoji.label(pixels, outcome)
    assert label.wrong
    assert label.text == f"{task.prompt} (taken for plain pink)"


@pytest.mark.slow
def test_a_random_model_is_painted_with_and_judged(tiny_model, tmp_path):
    files = ["--config", str(tiny_model.config), "--ckpt", str(tiny_model.checkpoint)]
    options = ["--steps", "2", "--limit", "3", "--batch-size", "2", "--device", "cpu", "--out", str(tmp_path)]
    assert evaluate_emoji.main(files + options) == 1
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["model"] == "tiny"
    assert report["steps"] == 2
    assert report["shares"]["all"]["count"] == 3


@pytest.mark.parametrize("option", ["--limit", "--batch-size"])
def test_a_count_below_one_is_refused(option, capsys):
    with pytest.raises(SystemExit) as error:
        evaluate_emoji.main([option, "0"])
    assert error.value.code == 2
    assert f"argument {option}: must be at least 1, got 0" in capsys.readouterr().err


def test_missing_weights_are_one_line_and_exit_code_2(tmp_path, capsys):
    config = tmp_path / "v1.yaml"
    config.touch()
    assert evaluate_emoji.main(["--limit", "1", "--config", str(config), "--ckpt", "nowhere.safetensors"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: no weights of emoji-v1: looked for nowhere.safetensors")
    assert error.count("\n") == 1


def test_help_is_there_from_any_directory_without_torch(tmp_path):
    code = (
        "import sys, runpy; sys.modules['torch'] = None; sys.argv = ['evaluate_emoji.py', '--help']; "
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--limit N" in done.stdout
