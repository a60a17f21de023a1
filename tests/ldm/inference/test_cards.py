"""One card a process, chosen before torch is there."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ldm.errors import DeviceError
from ldm.inference.cards import bind_card


@pytest.mark.parametrize(
    ("environ", "ranks"),
    [
        ({}, ["0", "1", "2", "3"]),
        ({"HIP_VISIBLE_DEVICES": "1,2"}, ["1", "2", "1", "2"]),
        ({"CUDA_VISIBLE_DEVICES": " 3 , 5 ,7"}, ["3", "5", "7", "3"]),
        ({"HIP_VISIBLE_DEVICES": "2,3", "CUDA_VISIBLE_DEVICES": "0,1"}, ["2", "3", "2", "3"]),
        ({"ROCR_VISIBLE_DEVICES": "2,3"}, ["0", "1", "0", "1"]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-8932f937,MIG-0a1b"}, ["GPU-8932f937", "MIG-0a1b", "GPU-8932f937", "MIG-0a1b"]),
    ],
)
def test_each_local_rank_takes_its_card_of_what_is_listed_and_both_variables_say_so(environ, ranks):
    for rank, card in enumerate(ranks):
        own = dict(environ)
        assert bind_card(rank, own).card == card
        assert own["HIP_VISIBLE_DEVICES"] == own["CUDA_VISIBLE_DEVICES"] == card
        assert own.get("ROCR_VISIBLE_DEVICES") == environ.get("ROCR_VISIBLE_DEVICES")


@pytest.mark.parametrize("value", ["", "-1", "NoDevFiles"])
def test_where_the_environment_says_no_card_nothing_is_set(value):
    environ = {"CUDA_VISIBLE_DEVICES": value}
    assert bind_card(0, environ) is None
    assert environ == {"CUDA_VISIBLE_DEVICES": value}


def test_more_processes_than_cards_is_said():
    listed = {"HIP_VISIBLE_DEVICES": "0,1"}
    assert not bind_card(1, dict(listed)).shared
    assert bind_card(2, dict(listed)).shared
    assert str(bind_card(2, dict(listed))) == "card 0 of 2 listed (0,1), shared with another process"
    assert str(bind_card(3, {})) == "card 3 by local rank, none listed by Slurm or the site"


def test_a_rank_below_zero_is_refused():
    with pytest.raises(DeviceError, match="counted from 0, got -1"):
        bind_card(-1, {})


def test_a_card_is_chosen_without_importing_torch():
    code = (
        "import sys, os; from ldm.inference.cards import bind_card; bind_card(1, os.environ); "
        "print(os.environ['HIP_VISIBLE_DEVICES'], 'torch' in sys.modules)"
    )
    environ = {**os.environ, "HIP_VISIBLE_DEVICES": "4,6"}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["6", "False"]
