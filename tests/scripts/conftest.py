"""The scripts, called in this process on a tiny model."""

from __future__ import annotations

import gc
import sys

import pytest

from scripts import txt2img
from scripts._run import run


@pytest.fixture
def script(tiny_model, tmp_path, monkeypatch, capfd):
    """Calls txt2img on the tiny model; returns the exit code and what was printed."""

    def call(*arguments, module=txt2img, steps=2):
        given = ["--config", tiny_model.config, "--ckpt", tiny_model.checkpoint, "--safety-checker", "off"]
        given += ["--device", "cpu", "--precision", "full", "--ddim_steps", steps, "--outdir", tmp_path / "out"]
        monkeypatch.setattr(sys, "argv", [str(argument) for argument in [module.__file__, *given, *arguments]])
        try:
            code = run(module.build_parser(), module.settle)
        except SystemExit as ended:
            code = ended.code
        printed = capfd.readouterr()
        return code, printed.out, printed.err

    yield call
    gc.unfreeze()  # what this test has loaded
