"""Behind Slurm's own words stands what exists; the texts are those that a real Slurm 22.05 gave."""

from __future__ import annotations

import pytest

from jobs.cluster.advice import site_advice
from jobs.spec import ClusterProfile
from ldm.errors import SchedulerError
from tests.jobs.cluster.test_detect import Site

PROFILE = ClusterProfile(scheduler="slurm", partition="kshdtest", gres="dcu")
LIMITED = Site(sacctmgr="proj7|normal|normal|200\n")


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (
            "error: invalid partition specified: x Batch job submission failed: Invalid partition name specified",
            "partitions here: kshctest (no cards; 900 nodes; no time limit); kshdtest (dcu:Hygon:4; 79 nodes; at most "
            "4320 min); bwtest (dcu:8; 8 nodes; at most 120 min); give cluster.partition=NAME",
        ),
        (
            "Batch job submission failed: Invalid generic resource (gres) specification",
            "kshdtest has dcu:Hygon:4; bwtest has dcu:8; give cluster.gres=NAME, without the count",
        ),
        (
            "Batch job submission failed: Requested node configuration is not available",
            "a node of kshdtest has 32 cores, 110000 MB, dcu:Hygon:4; change cards, cluster.gres, "
            "cluster.cpus_per_card or the memory directives",
        ),
        (
            "Batch job submission failed: Requested time limit is invalid (missing or exceeds some limit)",
            "kshdtest gives at most 4320 min; bwtest gives at most 120 min; give time_limit_min=N",
        ),
        (
            "Batch job submission failed: Invalid account or account/partition combination specified",
            "yours are account proj7 and qos normal; give cluster.account=NAME",
        ),
        ("Invalid job array specification", "MaxArraySize is 501 here; give cluster.max_array_size=501"),
        (
            "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)",
            "wait until jobs have ended, then type `resume`; give cluster.max_submit_jobs=200 for the next time",
        ),
        ("Invalid wckey specification", "the site wants a workload key; give cluster.directives.wckey=NAME"),
        ("Unable to contact slurm controller (connect failure)", ""),
    ],
)
def test_a_refusal_is_answered_with_what_exists(words, advice):
    assert site_advice(words, PROFILE, LIMITED) == advice


def test_a_default_partition_is_described_where_none_was_named():
    words = "Requested node configuration is not available"
    assert "a node of kshctest has 32 cores, 128000 MB, no cards" in site_advice(words, ClusterProfile(), LIMITED)


def test_a_site_whose_nodes_have_no_cards_is_answered():
    site = Site(sinfo="debug|debug*|up|infinite|1|8|16000|(null)\n")
    assert (
        site_advice("Invalid generic resource", PROFILE, site)
        == "no node here has cards; give cluster.gres=null device=cpu"
    )


def test_a_command_that_does_not_answer_costs_the_advice_alone():
    silent = Site(sinfo=SchedulerError("sinfo gave no answer"), sacctmgr=SchedulerError("no accounting"))
    assert site_advice("Invalid partition name specified", PROFILE, silent) == ""
    assert site_advice("Invalid account", PROFILE, silent) == ""
