"""Profiles can be listed, shown with the source of every value, and are refused where they cannot work."""

from __future__ import annotations

import dataclasses

import pytest
import yaml

from jobs.cluster.profiles import INSTEAD, MEANINGS, check_profile, list_profiles, save_profile, show_profile
from jobs.config import load_profile, read_settings
from jobs.spec import ClusterProfile
from ldm.errors import ConfigError, OutputError
from ldm.inference.models import PROJECT_ROOT

FIELDS = [field.name for field in dataclasses.fields(ClusterProfile)]


def refusal(*words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        check_profile(read_settings(["cluster=scnet-dcu", *words]))
    return str(caught.value)


def test_every_field_has_a_meaning():
    assert list(MEANINGS) == FIELDS


def test_every_profile_that_ships_is_listed_and_works():
    lines = list_profiles()
    assert [line.split()[0] for line in lines] == sorted(
        path.stem for path in (PROJECT_ROOT / "configs" / "clusters").glob("*.yaml")
    )
    assert not any("cannot be used" in line for line in lines)
    assert any(
        line.startswith("scnet-dcu ") and "partition kshdtest, 4 dcu a node, 8 cores a card" in line for line in lines
    )


def test_profiles_of_the_working_folder_are_listed_and_a_broken_one_says_why(tmp_path, monkeypatch):
    folder = tmp_path / "configs" / "clusters"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("scheduler: slurm\n")
    (folder / "broken.yaml").write_text("partitoin: x\n")
    monkeypatch.chdir(tmp_path)
    lines = {line.split()[0]: line for line in list_profiles()}
    assert "the default partition, no cards" in lines["mine"]
    assert "cannot be used: there is no key 'partitoin'; did you mean partition?" in lines["broken"]


def test_a_shown_profile_has_every_field_with_its_source():
    text = show_profile("scnet-dcu", ["cluster.env.A=1"])
    assert list(yaml.safe_load(text)) == FIELDS
    blocks = {block.splitlines()[-1].split(":")[0]: block for block in text.split("\n\n")}
    assert "[from scnet-dcu.yaml]\npartition: kshdtest" in blocks["partition"]
    assert "[the default]\naccount: null" in blocks["account"]
    assert "[from the command line]\nenv:\n  A: '1'" in text


@pytest.mark.parametrize("name", ["local", "scnet-dcu", "slurm-gpu"])
def test_a_shown_profile_saved_as_a_file_is_the_same_profile(tmp_path, name):
    (tmp_path / "saved.yaml").write_text(show_profile(name))
    assert load_profile(str(tmp_path / "saved.yaml")) == load_profile(name)


def test_an_unknown_profile_or_key_is_named_with_near_misses():
    with pytest.raises(ConfigError, match="there is no cluster 'scnet-dcuu'; did you mean scnet-dcu"):
        show_profile("scnet-dcuu")
    with pytest.raises(ConfigError, match="there is no key 'partitoin'; did you mean partition"):
        show_profile("scnet-dcu", ["cluster.partitoin=x"])
    with pytest.raises(ConfigError, match=r"a profile has settings cluster.KEY=value, got 'steps=3'"):
        show_profile("scnet-dcu", ["steps=3"])


@pytest.mark.parametrize("name", INSTEAD)
def test_a_directive_that_would_break_a_setting_is_refused_with_what_to_use(name):
    said = refusal(f"cluster.directives.{name}=16")
    assert said.startswith(f"the directive {name} must not stand in a profile; use ")


def test_many_tasks_are_answered_with_cards_and_cores():
    assert refusal("cluster.directives.ntasks=16") == (
        "the directive ntasks must not stand in a profile; use cards=N, which starts one process a card, and "
        "cluster.cpus_per_card=N for its cores"
    )


def test_more_time_than_the_cluster_gives_is_refused_with_what_to_type():
    assert refusal("cluster.max_time_min=60", "time_limit_min=90") == (
        "time_limit_min must be at most 60 on this cluster, got 90; give time_limit_min=60, or "
        "cluster.max_time_min=90 if the site allows that now"
    )
    check_profile(read_settings(["cluster=scnet-dcu", "cluster.max_time_min=60", "time_limit_min=60"]))


def test_several_folders_in_one_entry_are_refused():
    assert "must be a list of folders, one each" in refusal("cluster.ld_library_path=['/a:/b']")


def test_one_profile_shows_every_field_with_a_comment():
    text = (PROJECT_ROOT / "configs" / "clusters" / "slurm-gpu.yaml").read_text()
    assert list(yaml.safe_load(text)) == FIELDS


def test_a_saved_profile_never_replaces_a_file(tmp_path):
    save_profile(tmp_path / "a.yaml", "scheduler: slurm\n")
    with pytest.raises(ConfigError, match=r"a.yaml is there already, and stays as it is; give another -o FILE"):
        save_profile(tmp_path / "a.yaml", "scheduler: local\n")
    assert (tmp_path / "a.yaml").read_text() == "scheduler: slurm\n"
    with pytest.raises(ConfigError, match=r"a profile's file must end with .yaml, got .*mysite"):
        save_profile(tmp_path / "mysite", "")
    with pytest.raises(OutputError, match="cannot write"):
        save_profile(tmp_path / "missing" / "a.yaml", "")
