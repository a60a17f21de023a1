"""The text of Slurm's commands becomes data, the oddities of real sites included."""

from __future__ import annotations

import pytest

from jobs.cluster.site import (
    Association,
    NodeKind,
    Resource,
    minutes,
    parse_associations,
    parse_modules,
    parse_partitions,
    parse_resources,
    usual_cards,
)

SINFO = """\
kshdtest|kshdtest*|up|3-00:00:00|75|32|128000|dcu:Hygon:4(S:0-7)
kshdtest|kshdtest*|up|3-00:00:00|4|64+|512000+|dcu:8
kshctest|kshctest|up|infinite|1|32|128000|(null)
kshdAI|kshdAI|drain|2:00:00|10|32|128000|dcu:4,nvme:1
a line of another program
"""


def test_partitions_have_their_kinds_of_nodes():
    found = {partition.name: partition for partition in parse_partitions(SINFO)}
    assert list(found) == ["kshdtest", "kshctest", "kshdAI"]
    test = found["kshdtest"]
    assert (test.is_default, test.is_up, test.max_time_min, test.nodes) == (True, True, 4320, 79)
    assert [kind.cards("dcu") for kind in test.kinds] == [4, 8]
    assert [kind.cards("dcu:Hygon") for kind in test.kinds] == [4, 0]
    assert test.kinds[1] == NodeKind(4, 64, 512000, (Resource("dcu", "", 8),))
    assert found["kshctest"].max_time_min is None
    assert not found["kshdAI"].is_up


def test_a_partition_is_shown_with_what_it_has():
    shown = [str(partition) for partition in parse_partitions(SINFO)]
    assert shown == [
        "kshdtest (dcu:Hygon:4, dcu:8; 79 nodes; at most 4320 min)",
        "kshctest (no cards; 1 node; no time limit)",
        "kshdAI (dcu:4, nvme:1; 10 nodes; at most 120 min; not up)",
    ]


@pytest.mark.parametrize(
    ("text", "resources"),
    [
        ("(null)", []),
        ("", []),
        ("gpu", ["gpu:1"]),
        ("gpu:a100:4(S:0,1),shard:16", ["gpu:a100:4", "shard:16"]),
        ("gpu:a100_1g.5gb:7(S:0)", ["gpu:a100_1g.5gb:7"]),
        ("tmpdisk:4K", ["tmpdisk:4"]),
    ],
)
def test_resources_of_a_node_are_read(text, resources):
    assert [str(each) for each in parse_resources(text)] == resources


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3-00:00:00", 4320),
        ("2-12", 3600),
        ("1-01:30", 1530),
        ("2:00:00", 120),
        ("30:00", 30),
        ("90", 90),
        ("infinite", None),
        ("UNLIMITED", None),
        ("of another kind", None),
    ],
)
def test_times_of_slurm_are_minutes(text, expected):
    assert minutes(text) == expected


def test_associations_are_read_and_lines_without_an_account_passed_over():
    text = "proj7|normal,long|normal|200\nproj8||| \n|normal||\n\n"
    assert parse_associations(text) == [
        Association("proj7", ("normal", "long"), "normal", 200),
        Association("proj8", (), "", None),
    ]


def test_modules_of_environment_modules_and_of_lmod_are_read():
    environment_modules = "/usr/share/modulefiles:\ncompiler/rocm/dtk-22.10.1(default)\ncompiler/rocm/dtk-23.10\n\n"
    lmod = "/usr/share/modulefiles/Core:\nrocm/\nrocm/6.0.3\ncuda/12.1(D)\ncompiler/dtk/24.04 <aL>\n"
    assert parse_modules(environment_modules) == ["compiler/rocm/dtk-22.10.1", "compiler/rocm/dtk-23.10"]
    assert parse_modules(lmod) == ["rocm/6.0.3", "cuda/12.1", "compiler/dtk/24.04"]


def test_what_module_says_of_itself_is_no_module():
    assert parse_modules('No module(s) or extension(s) found!\nUse "module spider" to find all\n\n') == []


@pytest.mark.parametrize(
    ("resources", "cards"), [("gpu:4,dcu:4", "dcu"), ("nvme:1,gpu:a100:4", "gpu"), ("mlu:8", "mlu"), ("(null)", None)]
)
def test_the_usual_name_of_cards_wins(resources, cards):
    [partition] = parse_partitions(f"p|p|up|infinite|1|32|1000|{resources}")
    assert usual_cards(partition) == cards
