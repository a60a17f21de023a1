"""What a platform's web form asks, for the profile of the site; the commands run as they are pasted."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.config import read_settings
from jobs.rundir import RunDir
from jobs.submit.portal import portal_text
from ldm.errors import ConfigError
from ldm.inference.models import PROJECT_ROOT
from tests.jobs.support import prepare

RUN = RunDir(Path("/public/home/user/outputs/portraits-20240223"))


def fields(text: str) -> dict[str, str]:
    """The fields of the form with their values."""
    return dict(re.findall(r"^# (\S.*?)  +(\S.*)$", text, re.MULTILINE))


def commands(text: str) -> str:
    return text.partition("# command lines:\n")[2]


def form(*words: str, shards: int = 4) -> str:
    return portal_text(RUN, read_settings(["cluster=scnet-dcu", *words]), range(shards))


def test_the_form_is_filled_as_the_site_counts():
    assert fields(form("cards=2", "time_limit_min=90", "cluster.account=proj7")) == {
        "partition": "kshdtest",
        "nodes": "1",
        "cores": "16",
        "cards (DCU)": "2",
        "time limit": "90 min (01:30:00)",
        "account": "proj7",
        "work folder": str(PROJECT_ROOT),
    }


def test_no_more_cards_are_asked_for_than_have_work():
    assert fields(form("cards=4", shards=1))["cards (DCU)"] == "1"


def test_memory_is_named_where_the_profile_asks_for_it():
    assert fields(form("cluster.directives.mem=110G"))["mem"] == "110G"
    assert "mem" not in fields(form())


def test_the_command_lines_are_those_of_the_site_and_then_the_work():
    text = form("cards=2", "cluster.python=/home/u/env/bin/python", "cluster.ld_library_path=[/home/u/env/lib]")
    assert commands(text).splitlines() == [
        "set -e; ulimit -c 0",
        "export OMP_NUM_THREADS=8",
        "module switch compiler/rocm/dtk-22.10.1",
        'export LD_LIBRARY_PATH=/home/u/env/lib"${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"',
        f"cd {PROJECT_ROOT}",
        f"/home/u/env/bin/python -m jobs resume {RUN.path} cluster=local cards=2 batch_size=4 device=gpu",
    ]


def test_what_the_profile_cannot_ask_is_refused():
    with pytest.raises(ConfigError, match="the directive ntasks must not stand in a profile"):
        form("cluster.directives.ntasks=16")


def test_pasted_lines_make_the_run(tmp_path):
    """In a shell without modules; two processes share the work, as cards=2 asks."""
    prepared = prepare(tmp_path)
    settings = ["cluster=scnet-dcu", "device=cpu", "cards=2", "model=rehearsal", "cluster.cpus_per_card=1"]
    setup = ["export SITE=$HOME/lib", "export AGAIN=$SITE"]
    text = portal_text(
        prepared.run, read_settings([*settings, f"cluster.setup={json.dumps(setup)}"]), range(prepared.info.plan.shards)
    )
    done = subprocess.run(["bash"], input=text, cwd="/", capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "6 of 6 pictures done" in done.stdout
    assert len(list(prepared.run.logs.glob("local-*"))) == 2
    assert sys.executable in text


def test_a_pasted_line_of_the_site_that_fails_ends_the_job(tmp_path):
    text = form("cluster.setup=[test -e /missing]")
    done = subprocess.run(["bash"], input=text, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr == ""
