"""What cannot be painted is said in one line, with exit code 2, and leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch

from ldm.errors import WeightsError
from ldm.inference.images import read_parameters
from scripts import _run, txt2img
from scripts._options import find_checker
from tests.scripts.outputs import written

SCRIPT = Path(txt2img.__file__)
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4265380512\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--ddim_steps", 0), "steps must be in 1..1000, got 0"),
        (("--ddim_steps", 1001), "steps must be in 1..1000, got 1001"),
        (("--scale", -1), "guidance_scale must be in 0..100"),
        (("--seed", -1), "seed must be in 0..4294967295, got -1"),
        (("--n_iter", 0), "--n_iter must be at least 1, got 0"),
        (("--n_samples", 0), "--n_samples must be at least 1, got 0"),
        (("--n_rows", -1), "--n_rows must be at least 1, or 0"),
        (("--H", 500), "height must be a multiple of 8 px, at most 4096, got 500; try 496"),
        (("--W", 0), "width must be a multiple of 8 px, at most 4096, got 0; try 8"),
        (("--C", 3), "--C must be 4 for this model, got 3"),
        (("--f", 4), "--f must be 8 for this model, got 4"),
        (("--plms", "--ddim_eta", 0.5), "eta=0.5 needs sampler 'ddim'"),
        (("--cache-interval", 6), "cache_interval must be in 1..5 (1 = off), got 6"),
        (("--guidance-until", 0), "guidance_until must be above 0 and at most 1 (1.0 = every step), got 0.0; "),
        (("--merge-tokens", 0.9), "merge_tokens must be in 0..0.75 (0 = off), got 0.9"),
        (("--lcm", "--ddim_steps", 60), "steps must be in 1..50 for sampler 'lcm', got 60; 4 to 8 are usual"),
        (("--H", "tall"), "argument --H: invalid int value: 'tall'; see --help"),
        (("--sampler", "euler"), "unrecognized arguments: --sampler euler; see --help"),
        (("--prompt",), "argument --prompt: expected one argument; see --help"),
        (("--prompt", "\udcff"), "the prompt must be text in the terminal's encoding, its sign 1 is not"),
        (("--model", "sdxl"), "argument --model: invalid choice: 'sdxl'"),
        (("--from-file", "none.txt"), "cannot read the prompts file none.txt: No such file or directory"),
        (
            ("--from-file", "a.jsonl"),
            "--from-file takes one prompt a line; a .jsonl file is for: python -m jobs submit",
        ),
        (("--config", "none.yaml"), "no config of sd-v1: looked for none.yaml in "),
        (("--ckpt", "none.ckpt"), "no weights of sd-v1: looked for none.ckpt in "),
        (("--laion400m", "--config", "none.yaml"), "no config of laion400m: looked for none.yaml in "),
        (("--clip", "/nowhere"), "no CLIP tokenizer: "),
        (("--device", "tpu"), "device must be one of "),
        (("--safety-checker", "/nowhere"), "no safety checker: looked for the folder /nowhere in "),
        (("--outdir", "/proc/1/out"), "cannot write /proc/1/out: "),
        (("--outdir", "/dev/null/out"), "cannot write /dev/null/out: /dev/null is no folder that you may write to"),
        (("--ckpt", "a" * 300), "cannot look at a"),
        (("--watermark",), "--watermark needs "),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_bad_input_is_one_line_and_leaves_nothing(script, tmp_path, options, message):
    code, _, err = script(*options)
    assert code == 2
    assert err.startswith(f"txt2img.py: error: {message}")
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LFS_POINTER, "is a Git LFS pointer"),
        (b"<!doctype html><title>Sign in</title>", "is a web page"),
        (b"", "is empty"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_named_before_anything_is_loaded(script, tmp_path, content, message):
    (tmp_path / "model.ckpt").write_bytes(content)
    code, out, err = script("--ckpt", tmp_path / "model.ckpt")
    assert code == 2
    assert f"txt2img.py: error: {tmp_path}/model.ckpt {message}" in err
    assert "Loading" not in out
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_does_not_fit_and_an_unknown_key_leave_nothing(script, tmp_path, tiny_model):
    text = tiny_model.config.read_text()
    for change, message in [
        (("model_channels: 32", "model_channels: 64"), "tiny.safetensors"),
        (("channels: 4\n", "channels: 4\n    chanels: 4\n"), "no parameter 'chanels'; did you mean 'channels'?"),
    ]:
        (tmp_path / "other.yaml").write_text(text.replace(*change, 1))
        code, _, err = script("--config", tmp_path / "other.yaml")
        assert code == 2
        assert message in err
        assert err.startswith("txt2img.py: error: ")
        assert not (tmp_path / "out").exists()


def test_an_empty_file_of_prompts_and_one_in_no_encoding_are_refused(script, tmp_path):
    prompts = tmp_path / "prompts.txt"
    for content, message in [
        (b"\n# only a remark\n", "at least one prompt"),
        (b"a cat\n\xff\xff\xff\n", "prompts.txt:2:"),
    ]:
        prompts.write_bytes(content)
        code, _, err = script("--from-file", prompts)
        assert code == 2
        assert message in err
        assert not (tmp_path / "out").exists()


def test_a_full_disk_is_one_line_and_leaves_no_part_of_a_picture(script, full_disk):
    code, _, err = script("--outdir", full_disk / "out", "--n_iter", 1)
    assert code == 2
    line = err.strip().split("\n")[-1]
    assert "txt2img.py: error: cannot write" in line
    assert "No space left on device; free some space" in line
    assert written(full_disk) == ["ballast"]


def test_the_safety_checker_is_looked_for_where_the_model_needs_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    usual = "models/a-checker"
    assert find_checker(None, None) is None
    assert find_checker("off", usual) is None
    with pytest.raises(WeightsError, match=rf"looked for the folder {usual} in {tmp_path} .*--safety-checker off"):
        find_checker(None, usual)
    (tmp_path / usual).mkdir(parents=True)
    with pytest.raises(
        WeightsError, match=r"not there: config\.json, preprocessor_config\.json, model\.safetensors or "
    ):
        find_checker(None, usual)
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / usual / name).write_text("{}")
    (tmp_path / usual / "model.safetensors").write_bytes(LFS_POINTER)
    with pytest.raises(WeightsError, match=r"model\.safetensors is a Git LFS pointer"):
        find_checker(None, usual)
    torch.save({}, str(tmp_path / usual / "pytorch_model.bin"))
    assert find_checker(None, usual) == Path(usual)
    assert find_checker(usual, None) == Path(usual)


def test_too_little_memory_is_one_line(script, monkeypatch):
    def paint(order, pipeline, digest):
        torch.empty(2**60, dtype=torch.uint8)

    monkeypatch.setattr("scripts._paint.paint", paint)
    code, _, err = script()
    assert code == 4
    assert err == (
        "txt2img.py: error: out of memory; paint fewer pictures at a time (--n_samples 1), or smaller ones\n"
    )


def test_a_package_that_cannot_be_imported_is_named(tmp_path, tiny_model):
    (tmp_path / "torch.py").write_text("raise ImportError('libmpi.so.40: cannot open shared object file')")
    command = [sys.executable, str(SCRIPT), "--config", str(tiny_model.config), "--ckpt", str(tiny_model.checkpoint)]
    ended = subprocess.run(
        [*command, "--safety-checker", "off"],
        capture_output=True, text=True, cwd=tmp_path, check=False, env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert ended.returncode == 2
    assert ended.stderr.startswith("txt2img.py: error: libmpi.so.40: cannot open shared object file; activate ")
    assert ended.stderr.count("\n") == 1


def test_without_weights_a_fresh_machine_reads_what_to_do(tmp_path):
    command = [sys.executable, str(SCRIPT), "--prompt", "a cat", "--plms", "--outdir=outputs/txt2img-samples"]
    ended = subprocess.run(
        [*command, "--ckpt", "models/ldm/none/model.ckpt"], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith("txt2img.py: error: no weights of sd-v1: looked for models/ldm/none/model.ckpt in ")
    assert "--model emoji-v1" in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_a_process_that_leaves_has_said_everything_and_done_what_it_was_to_do_at_its_end():
    code = "import atexit; from scripts._run import leave; atexit.register(print, 'done'); print('said'); leave(4)"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=SCRIPT.parents[1], check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (4, "said\ndone\n", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is always full is Linux's")
@pytest.mark.parametrize(("where", "status", "said"), [("/dev/full", 2, "No space left on device"), (None, 141, "")])
def test_a_reader_that_is_gone_and_a_full_disk_end_in_no_traceback(tiny_model, tmp_path, where, status, said):
    options = ["--config", tiny_model.config, "--ckpt", tiny_model.checkpoint, "--outdir", tmp_path / "out"]
    options += ["--safety-checker", "off", "--device", "cpu", "--ddim_steps", 2, "--n_samples", 1, "--n_iter", 1]
    reader, pipe = os.pipe()
    os.close(reader)
    with open(where or pipe, "w") as stdout:
        command = [sys.executable, str(SCRIPT), *map(str, options)]
        done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False)
    if where:
        os.close(pipe)
    assert done.returncode == status
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_hash_that_cannot_be_taken_costs_no_picture(script, tmp_path, monkeypatch):
    gone = Future()
    gone.set_exception(FileNotFoundError(2, "No such file or directory"))
    monkeypatch.setattr(_run, "sha256_beside", lambda path: gone)
    code, _, err = script("--n_samples", 1, "--n_iter", 2, "--skip_grid")
    assert code == 0
    assert err.count("pictures come without the hash of the weights: [Errno 2] No such file") == 1
    assert written(tmp_path / "out") == ["samples/00000.png", "samples/00001.png"]
    assert "Model hash" not in read_parameters(tmp_path / "out/samples/00001.png")
