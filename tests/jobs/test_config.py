"""key=value words, job files and profiles become settings, or one line that says what is wrong and what was meant."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from jobs.config import Settings, build, load_profile, read_settings, read_yaml, to_yaml
from jobs.spec import ClusterProfile, JobSpec
from ldm.errors import ConfigError
from ldm.inference.models import PROJECT_ROOT

PROFILES = sorted((PROJECT_ROOT / "configs" / "clusters").glob("*.yaml"))


def failure(*words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read_settings(words)
    return str(caught.value)


def test_no_words_are_the_defaults_on_this_machine():
    settings = read_settings([])
    assert settings.spec == JobSpec()
    assert settings.profile.scheduler == "local"


def test_words_set_values_of_every_kind():
    spec = read_settings(["steps=30", "guidance_scale=3", "requeue=false", "max_parallel=8", "name=x"]).spec
    assert (spec.steps, spec.guidance_scale, spec.requeue, spec.max_parallel, spec.name) == (30, 3.0, False, 8, "x")


@pytest.mark.parametrize(
    "text",
    ["", "a: b", "${HOME}", "\\${x}", "$HOME", "1e5", "007", "null ", "[x]", "'q'", "a=b=c", "模糊", "???", "a???"],
)
def test_text_is_taken_to_the_letter(text):
    assert read_settings([f"negative_prompt={text}"]).spec.negative_prompt == text


def test_null_takes_a_setting_away():
    spec = read_settings(["max_parallel=8", "height=64", "max_parallel=null", "height=null"]).spec
    assert spec.max_parallel is None
    assert spec.height is None


def test_the_last_of_two_words_wins():
    assert read_settings(["steps=3", "steps=4"]).spec.steps == 4


def test_words_win_over_the_job_file_wherever_it_stands(tmp_path):
    (tmp_path / "job.yaml").write_text("steps: 30\nname: from-file\ncluster: scnet-dcu\n")
    settings = read_settings(["steps=5", f"job={tmp_path / 'job.yaml'}"])
    assert (settings.spec.steps, settings.spec.name) == (5, "from-file")
    assert settings.profile.partition == "kshdtest"


def test_the_example_job_is_good():
    assert read_settings([f"job={PROJECT_ROOT / 'configs/jobs/example.yaml'}"]).spec.model == "emoji-v1"


def test_the_example_job_names_every_setting_that_has_a_default_worth_showing():
    example = read_yaml(PROJECT_ROOT / "configs/jobs/example.yaml")
    unnamed = set(vars(JobSpec())) - set(example)
    assert unnamed == {"name", "outputs", "config", "checkpoint", "clip", "safety_checker", "height", "width", "eta"}


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_every_profile_that_ships_is_good(path):
    assert load_profile(path.stem) == load_profile(str(path))


def test_the_dcu_profile_is_the_one_that_the_users_allocation_shows():
    profile = load_profile("scnet-dcu")
    assert (profile.partition, profile.gres, profile.cpus_per_card) == ("kshdtest", "dcu", 8)


def test_a_profile_is_looked_for_in_the_working_directory_first(tmp_path, monkeypatch):
    (tmp_path / "configs" / "clusters").mkdir(parents=True)
    (tmp_path / "configs" / "clusters" / "scnet-dcu.yaml").write_text("scheduler: slurm\npartition: mine\n")
    monkeypatch.chdir(tmp_path)
    assert load_profile("scnet-dcu").partition == "mine"
    assert load_profile("slurm-gpu").partition == "gpu"


def test_cluster_words_change_the_profile():
    words = ["cluster=scnet-dcu", "cluster.partition=x", "cluster.env.A=${B}", "cluster.env.C=1"]
    profile = read_settings([*words, "cluster.directives.mem-per-cpu=2G", 'cluster.setup=["a b", "c"]']).profile
    assert profile.partition == "x"
    assert profile.env == {"A": "${B}", "C": "1"}
    assert profile.directives == {"mem-per-cpu": "2G"}
    assert profile.setup == ["a b", "c"]
    assert profile.gres == "dcu"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("step=3", "there is no key 'step'; did you mean steps?"),
        ("partition=x", "'partition' belongs to the cluster's profile; did you mean cluster.partition?"),
        ("webhook=foo", "webhook must be a URL that begins with http:// or https://, got 'foo'"),
        ("zzz=3", "there is no key 'zzz'; there are name, outputs, cluster"),
        ("steps=x", "steps must be a whole number, got 'x'"),
        ("steps=1.5", "steps must be a whole number, got '1.5'"),
        ("steps=null", "steps must be a whole number, got 'null'"),
        ("guidance_scale=high", "guidance_scale must be a number or null, got 'high'"),
        ("requeue=maybe", "requeue must be true or false, got 'maybe'"),
        ("max_parallel=x", "max_parallel must be a whole number or null, got 'x'"),
        ("steps", "settings are given as key=value, got 'steps'"),
        ("=3", "settings are given as key=value, got '=3'"),
        ("cluster=scnet-dcuu", "there is no cluster 'scnet-dcuu'; did you mean scnet-dcu or "),
        ("cluster=missing.yaml", "cannot read missing.yaml: No such file or directory"),
        ("cluster.partiton=x", "there is no key 'partiton'; did you mean partition?"),
        ("cluster.setup=a", "setup must be a list, got 'a'"),
        ("cluster.setup=[a", "setup must be a list in YAML, got '[a'"),
        ("cluster.setup=[false]", "setup must hold text, YAML reads one entry as False; quote it"),
        ("cluster.directives={exclusive: yes}", "directives must hold text, YAML reads one entry as True; quote it"),
        ("cluster.env={A: }", "env must hold text, YAML reads one entry as None; quote it"),
        ("cluster.env=a", "env must be a map, got 'a'"),
        ("steps=???", "steps must be a whole number, got '???'"),
        ("height=???", "height must be a whole number or null, got '???'"),
        ("requeue=???", "requeue must be true or false, got '???'"),
        ("cluster.setup=???", "setup must be a list, got '???'"),
        ("name=???", "name must be letters, digits and any of _ . + -, not first, got '???'"),
        ("job=missing.yaml", "cannot read missing.yaml: No such file or directory"),
        ("images_per_shard=0", "images_per_shard must be at least 1, got 0"),
    ],
)
def test_a_wrong_word_is_named_with_what_was_meant(word, message):
    assert failure(word).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: x", "steps must be a whole number, got 'x' (PATH)"),
        ("step: 3", "there is no key 'step'; did you mean steps?"),
        ("name: no", "name must be a text, YAML reads it as False; quote it in PATH"),
        ("negative_prompt:", "negative_prompt must be a text, YAML reads it as None; quote it in PATH"),
        ("safety: on", "safety must be a text, YAML reads it as True; quote it in PATH"),
        ("steps: 3\nsteps: 4", "PATH holds the key 'steps' twice"),
        ("- steps", "PATH must hold `key: value` lines, got list"),
        ("1: 2", "PATH must hold `key: value` lines, got dict"),
        ("a: [", "PATH must be YAML in UTF-8: while parsing"),
    ],
)
def test_a_wrong_job_file_is_named(tmp_path, text, message):
    path = tmp_path / "job.yaml"
    path.write_text(text)
    assert failure(f"job={path}").replace(str(path), "PATH").startswith(message)


def test_safety_off_in_a_job_file_needs_no_quotes(tmp_path):
    for number, text in enumerate(["safety: off", "safety: 'off'", 'safety: "off"']):
        (tmp_path / f"{number}.yaml").write_text(text)
        assert read_settings([f"job={tmp_path / f'{number}.yaml'}"]).spec.safety == "off"


def test_question_marks_are_text_in_lists_and_maps_too():
    words = ["cluster=scnet-dcu", 'cluster.setup=["???"]', "cluster.env.A=???"]
    profile = read_settings(words).profile
    assert (profile.setup, profile.env) == (["???"], {"A": "???"})


def test_an_empty_job_file_says_nothing(tmp_path):
    (tmp_path / "job.yaml").write_text("# nothing\n")
    assert read_settings([f"job={tmp_path / 'job.yaml'}"]).spec == JobSpec()


def test_shell_in_a_profile_is_left_alone(tmp_path):
    line = 'export LD_LIBRARY_PATH=~/miniconda3/envs/ldm/lib:${LD_LIBRARY_PATH:-} A="\\${B}" \\\\${C'
    (tmp_path / "site.yaml").write_text(
        yaml.safe_dump({"scheduler": "slurm", "setup": [line], "env": {"A": "${B}", "N": 3}})
    )
    profile = load_profile(str(tmp_path / "site.yaml"))
    assert profile.setup == [line]
    assert {name: str(value) for name, value in profile.env.items()} == {"A": "${B}", "N": "3"}


def test_settings_come_back_from_yaml_as_they_were(tmp_path):
    words = [
        "cluster=scnet-dcu",
        "negative_prompt=a: ${b}\n\N{LION FACE}",
        "cluster.env.A=\\${B}",
        "guidance_scale=1e-3",
    ]
    settings = read_settings(words)
    (tmp_path / "x.yaml").write_text(to_yaml({"spec": settings.spec, "cluster": settings.profile}), encoding="utf-8")
    values = read_yaml(tmp_path / "x.yaml")
    spec = build(JobSpec, [(key, value, "") for key, value in values["spec"].items()])
    profile = build(ClusterProfile, [(key, value, "") for key, value in values["cluster"].items()])
    assert Settings(spec, profile) == settings


def test_of_a_planned_run_only_how_it_is_done_may_change():
    base = read_settings(["steps=9", "cluster=scnet-dcu", "cluster.partition=x"])
    changed = read_settings(["batch_size=1", "cluster.account=me"], base)
    assert (changed.spec.steps, changed.spec.batch_size) == (9, 1)
    assert (changed.profile.partition, changed.profile.account) == ("x", "me")
    with pytest.raises(
        ConfigError, match=r"^steps is fixed by the plan of the run; of a run one may change cluster, batch_size"
    ):
        read_settings(["steps=10"], base)


def test_a_planned_run_may_go_on_at_another_cluster():
    base = read_settings(["cluster=scnet-dcu"])
    assert read_settings(["cluster=local"], base).profile == load_profile("local")


def test_reading_settings_leaves_the_folder_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    read_settings(["outputs=somewhere"])
    assert list(Path.cwd().iterdir()) == []
