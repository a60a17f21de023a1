"""Processes started together find their shares and their cards, under any launcher and under none."""

from __future__ import annotations

import os
import random
import socket

import pytest

from jobs.worker.place import Place, find_place, parse_part, parse_tasks, share, take_card, with_a_card, worker_name
from ldm.errors import ConfigError

STEP = {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1", "SLURM_NODEID": "1",
        "SLURM_STEP_TASKS_PER_NODE": "2(x2)"}  # fmt: skip


def test_without_a_launcher_a_process_is_alone():
    assert find_place({}) == Place(rank=0, processes=1, local_rank=0, node=0, tasks=(1,))


def test_a_slurm_step_gives_the_place():
    assert find_place(STEP) == Place(rank=3, processes=4, local_rank=1, node=1, tasks=(2, 2))


def test_a_batch_script_is_one_process_however_many_tasks_the_job_has():
    assert find_place({"SLURM_PROCID": "0", "SLURM_NTASKS": "16", "SLURM_LOCALID": "0"}) == Place()


def test_torchrun_comes_before_slurm():
    ranks = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}
    assert find_place({**STEP, **ranks}) == Place(rank=1, processes=2, local_rank=1, tasks=(2,))


def test_open_mpi_gives_the_place():
    ranks = {"OMPI_COMM_WORLD_RANK": "5", "OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
    assert find_place(ranks) == Place(rank=5, processes=8, local_rank=1, tasks=(8,))


def test_a_rank_that_is_no_number_is_named():
    with pytest.raises(ConfigError, match="RANK must be a whole number, got 'x'"):
        find_place({"RANK": "x", "WORLD_SIZE": "2", "LOCAL_RANK": "0"})


@pytest.mark.parametrize("parts", [1, 2, 3, 16])
def test_the_shares_are_everything_once(parts):
    shares = [share(range(10), part, parts) for part in range(parts)]
    assert sorted(item for each in shares for item in each) == list(range(10))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(
    ("text", "tasks"),
    [("1", (1,)), ("16", (16,)), ("2(x2)", (2, 2)), ("3,1", (3, 1)), ("4,2(x3),1", (4, 2, 2, 2, 1))],
)
def test_the_tasks_of_each_node_are_read(text, tasks):
    assert parse_tasks(text) == tasks


@pytest.mark.parametrize("text", ["", "x", "2(x)", "2x2", "2,,1", ",1"])
def test_tasks_in_another_writing_are_refused(text):
    with pytest.raises(ConfigError, match="SLURM_STEP_TASKS_PER_NODE must be as 3,1 or 2"):
        parse_tasks(text)


@pytest.mark.parametrize("tasks", ["2,1", "4"])
def test_tasks_that_do_not_hold_this_process_are_refused(tasks):
    with pytest.raises(ConfigError, match="must hold 4 tasks and node 1, got"):
        find_place({**STEP, "SLURM_STEP_TASKS_PER_NODE": tasks})


def places_of_step(tasks: tuple[int, ...]) -> list[Place]:
    """The places of a step's processes, as their variables tell them."""
    ranks = [(node, local) for node, count in enumerate(tasks) for local in range(count)]
    return [
        find_place(
            {
                "SLURM_PROCID": str(rank),
                "SLURM_STEP_NUM_TASKS": str(len(ranks)),
                "SLURM_LOCALID": str(local),
                "SLURM_NODEID": str(node),
                "SLURM_STEP_TASKS_PER_NODE": ",".join(map(str, tasks)),
            }
        )
        for rank, (node, local) in enumerate(ranks)
    ]


@pytest.mark.parametrize(
    ("tasks", "cards", "working"),
    [((16,), 2, 2), ((16, 16), 2, 4), ((2,), 2, 2), ((1,), 4, 1), ((2, 2), 4, 4), ((5,) * 3, 4, 12), ((3, 1), 2, 3)],
)
def test_processes_with_a_card_share_among_themselves(tasks, cards, working):
    settled = [place for place in (with_a_card(place, cards) for place in places_of_step(tasks)) if place is not None]
    assert sorted(place.rank for place in settled) == list(range(working))
    assert {place.processes for place in settled} == {working}
    assert all(place.local_rank < cards for place in settled)


def test_however_tasks_and_cards_lie_every_rank_is_there_once():
    random.seed(0)
    for _ in range(300):
        tasks = tuple(random.randint(1, 9) for _ in range(random.randint(1, 6)))
        cards = random.randint(1, 8)
        settled = [place for place in (with_a_card(place, cards) for place in places_of_step(tasks)) if place]
        assert sorted(place.rank for place in settled) == list(range(len(settled))), (tasks, cards)
        assert {place.processes for place in settled} == {len(settled)}, (tasks, cards)
        assert len({(place.node, place.local_rank) for place in settled}) == len(settled)


@pytest.mark.parametrize(("text", "part"), [("0/1", (0, 1)), ("3/8", (3, 8))])
def test_a_part_is_read(text, part):
    assert parse_part(text) == part


@pytest.mark.parametrize("text", ["", "1", "8/8", "a/b", "-1/2", "1/0", "1/2/3"])
def test_another_writing_of_a_part_is_refused(text):
    with pytest.raises(ConfigError, match="a part is written as K/N with K from 0 to N-1"):
        parse_part(text)


def test_a_process_takes_the_card_of_its_rank_among_those_that_slurm_gave():
    environ: dict[str, str] = {}
    card = take_card(Place(local_rank=1, processes=2), environ, ["2", "3"])
    assert card is not None
    assert card.card == "3"
    assert environ == {"HIP_VISIBLE_DEVICES": "3", "CUDA_VISIBLE_DEVICES": "3"}


def test_cards_that_the_site_lists_are_believed_before_slurm():
    environ = {"HIP_VISIBLE_DEVICES": "1,2"}
    card = take_card(Place(), environ, ["0", "3"])
    assert card is not None
    assert card.card == "1"


def test_where_nobody_lists_cards_the_rank_on_the_node_counts():
    environ: dict[str, str] = {}
    card = take_card(Place(local_rank=1, processes=2), environ, None)
    assert card is not None
    assert (card.card, card.listed) == ("1", None)


@pytest.mark.parametrize(
    ("environ", "job"),
    [({}, ""), ({"SLURM_JOB_ID": "9"}, "9/"), ({"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "8",
      "SLURM_ARRAY_TASK_ID": "1"}, "8_1/")],
)  # fmt: skip
def test_a_worker_is_named_by_host_job_and_process(environ, job):
    assert worker_name(environ) == f"{socket.gethostname()}/{job}{os.getpid()}"
