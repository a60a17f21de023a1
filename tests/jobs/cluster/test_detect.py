"""A profile is drawn up from what a site's commands say, and says what they did not. The outputs are of many sites."""

from __future__ import annotations

from typing import Sequence

import pytest
import yaml

from jobs.cluster.detect import detect
from jobs.config import load_profile
from jobs.spec import ClusterProfile
from ldm.errors import ConfigError, SchedulerError

KSH = """\
kshctest|kshctest*|up|infinite|900|32|128000|(null)
kshdtest|kshdtest|up|3-00:00:00|79|32|110000|dcu:Hygon:4(S:0-7)
bwtest|bwtest|up|2:00:00|8|128|512000|dcu:8
"""
CONFIG = """\
Configuration data as of 2024-02-23T12:00:00
ClusterName             = ksh
DefMemPerNode           = UNLIMITED
JobRequeue              = 0
KillWait                = 30 sec
MaxArraySize            = 501
SelectTypeParameters    = CR_CORE_MEMORY
"""


class Site:
    """A site's commands as data; one whose answer is an error fails with it."""

    def __init__(self, **answers: object) -> None:
        self.asked: list[list[str]] = []
        self.answers: dict[str, object] = {
            "sinfo": KSH,
            "config": CONFIG,
            "partition": "PartitionName=x MaxTime=3-00:00:00 DefMemPerNode=UNLIMITED",
            "sacctmgr": SchedulerError("sacctmgr: You are not running a supported accounting_storage plugin"),
            "bash": "compiler/rocm/dtk-22.10.1\nmpi/hpcx/2.11.0\n",
            "sbatch": "",
            **answers,
        }

    def __call__(self, command: Sequence[str]) -> str:
        self.asked.append(list(command))
        answer = self.answers[command[2] if command[0] == "scontrol" else command[0]]
        if isinstance(answer, Exception):
            raise answer
        return str(answer)


def detected(site: Site, tmp_path, partition=None) -> ClusterProfile:
    """The profile that a detected text is as a file; what is said of it stays in the text."""
    (tmp_path / "detected.yaml").write_text(detect(partition, site))
    return load_profile(str(tmp_path / "detected.yaml"))


def test_the_largest_partition_with_cards_is_described(tmp_path):
    profile = detected(Site(), tmp_path)
    assert (profile.scheduler, profile.partition, profile.gres) == ("slurm", "kshdtest", "dcu")
    assert (profile.cards_per_node, profile.cpus_per_card) == (4, 8)
    assert (profile.max_time_min, profile.max_array_size, profile.max_submit_jobs) == (4320, 501, None)


def test_a_default_partition_with_cards_is_taken_before_a_larger_one(tmp_path):
    assert (
        detected(Site(sinfo=KSH.replace("kshctest*", "kshctest").replace("|bwtest|", "|bwtest*|")), tmp_path).partition
        == "bwtest"
    )


def test_the_partition_that_was_asked_for_is_described(tmp_path):
    profile = detected(Site(), tmp_path, "bwtest")
    assert (profile.partition, profile.cards_per_node, profile.cpus_per_card) == ("bwtest", 8, 16)
    assert profile.max_time_min == 120
    with pytest.raises(ConfigError, match="there is no partition 'bwtset'; did you mean bwtest"):
        detect("bwtset", Site())


def test_partitions_to_choose_from_are_listed_with_what_slurm_says_of_ours():
    text = detect(None, Site())
    assert "#   kshctest (no cards; 900 nodes; no time limit)" in text
    assert "#   bwtest (dcu:8; 8 nodes; at most 120 min)" in text
    assert "sbatch --test-only finds that a job of yours may run in kshdtest." in text
    refused = detect(None, Site(sbatch=SchedulerError("sbatch: User's group not permitted to use this partition")))
    assert "sbatch --test-only fails there: sbatch: User's group not permitted" in refused


def test_without_accounting_it_says_so():
    assert (
        "# Not learned: sacctmgr: You are not running a supported accounting_storage plugin\naccount: null"
        in detect(None, Site())
    )


def test_accounting_tells_account_qos_and_limit(tmp_path):
    one = Site(sacctmgr="proj7|normal,long|normal|200\n")
    assert detected(one, tmp_path).max_submit_jobs == 200
    text = detect(None, one)
    assert "# Yours is proj7.\naccount: null" in text
    assert "# You may use normal, long.\nqos: null" in text
    several = detect(None, Site(sacctmgr="proj7|normal||\nproj8|normal||50\n"))
    assert "# LOOK: you have proj7, proj8." in several
    assert "max_submit_jobs: 50" in several
    assert "accounting knows no account of yours" in detect(None, Site(sacctmgr=""))


def test_modules_that_may_be_it_are_listed_and_none_is_chosen(tmp_path):
    text = detect(None, Site())
    assert "#   compiler/rocm/dtk-22.10.1\nsetup: []" in text
    assert "hpcx" not in text
    assert "#   CUDA/12.1" in detect(None, Site(bash="CUDA/12.1\n"))
    many = detect(None, Site(bash="\n".join(f"dtk/{number}" for number in range(50))))
    assert "and 10 more: module -t avail" in many
    assert "Not learned: there are no environment modules here." in detect(None, Site(bash=""))
    assert "no module of DTK, ROCm or the like is listed" in detect(None, Site(bash="gcc/12\n"))
    assert "Not learned: bash gave no answer" in detect(None, Site(bash=SchedulerError("bash gave no answer")))


def test_a_card_s_share_of_the_memory_is_asked_for_where_a_job_would_take_the_node(tmp_path):
    site = Site()
    assert detected(site, tmp_path).directives == {"mem-per-cpu": "3437M"}
    assert "Memory: by default all of the node's, for one job alone; a core's share is 3437 MB." in detect(None, site)


@pytest.mark.parametrize(
    ("default", "asked"), [("2048", {}), ("512", {"mem-per-cpu": "3437M"}), ("UNLIMITED", {"mem-per-cpu": "3437M"})]
)
def test_memory_is_left_alone_where_the_default_is_enough(tmp_path, default, asked):
    config = CONFIG + f"DefMemPerCPU            = {default}\n"
    assert detected(Site(config=config), tmp_path).directives == asked


def test_memory_is_left_alone_where_it_is_not_handed_out(tmp_path):
    site = Site(config=CONFIG.replace("CR_CORE_MEMORY", "CR_CORE"))
    assert detected(site, tmp_path).directives == {}


def test_a_controller_that_keeps_silent_costs_only_what_it_knew(tmp_path):
    silent = SchedulerError("scontrol gave no answer within 60 s")
    site = Site(config=silent, partition=silent)
    assert detected(site, tmp_path).max_array_size == ClusterProfile().max_array_size
    text = detect(None, site)
    assert "# Not learned: scontrol gave no answer within 60 s\nmax_array_size: 1001" in text
    assert "the cluster here," in text


def test_requeue_is_explained_where_it_is_off_by_default():
    assert "JobRequeue=0, so a job is put back only where it asks for that" in detect(None, Site())


def test_a_site_without_cards_gets_a_profile_without(tmp_path):
    profile = detected(Site(sinfo="debug|debug*|up|infinite|1|8|16000|(null)\n"), tmp_path)
    assert (profile.gres, profile.cards_per_node, profile.cpus_per_card) == (None, 1, 1)


def test_every_field_is_there_with_its_meaning():
    text = detect(None, Site())
    assert list(yaml.safe_load(text)) == list(vars(ClusterProfile()))
    assert text.count("\n\n# ") == len(vars(ClusterProfile()))


def test_without_slurm_there_is_nothing_to_detect():
    with pytest.raises(SchedulerError, match="sinfo is not here"):
        detect(None, Site(sinfo=SchedulerError("sinfo is not here: load the site's Slurm, or use cluster=local")))
    with pytest.raises(SchedulerError, match="sinfo -a lists no partition"):
        detect(None, Site(sinfo=""))
