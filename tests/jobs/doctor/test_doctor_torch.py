"""The doctor lets another process start torch, and tells what comes of it."""

from __future__ import annotations

import subprocess

import pytest

from jobs.cli import main
from jobs.doctor.doctor_torch import examine_torch
from jobs.doctor.verdict import Verdict


def answering(status, out="", err=""):
    return lambda command: subprocess.CompletedProcess(command, status, out, err)


def test_what_torch_computes_with_here_is_asked_of_a_process_of_its_own():
    found = examine_torch(["model=rehearsal", "device=cpu", "precision=full"])
    assert {finding.verdict for finding in found} == {Verdict.OK}
    said = "\n".join(map(str, found))
    assert "here: torch " in said
    assert "here: device: cpu" in said
    assert "here: arithmetic: float32 (as precision full asks)" in said
    assert "here: weights: " in said


def test_a_torch_that_does_not_start_is_a_matter_of_the_login_node():
    error = "Traceback ...\nImportError: libgalaxyhip.so.5: cannot open shared object file\n"
    (finding,) = examine_torch([], answering(1, err=error))
    assert finding.verdict is Verdict.WARN
    assert "libgalaxyhip.so.5" in finding.text
    assert "python -m jobs kernels" in finding.text


def test_a_torch_that_kills_its_process_is_told_by_its_status():
    (finding,) = examine_torch([], answering(-4))
    assert "status -4" in finding.text


@pytest.mark.parametrize("error", [subprocess.TimeoutExpired("x", 1), PermissionError(13, "Permission denied")])
def test_a_process_that_gives_no_answer_is_a_warning(error):
    def refuse(command):
        raise error

    (finding,) = examine_torch([], refuse)
    assert finding.verdict is Verdict.WARN


def test_a_card_that_is_not_here_is_told_in_one_line(capsys):
    assert main(["kernels", "device=dcu", "model=rehearsal"]) == 2
    assert "device 'dcu' needs" in capsys.readouterr().err
