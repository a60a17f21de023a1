"""Settings are refused where they are built, with what would be right."""

from __future__ import annotations

import pytest

from jobs.spec import ClusterProfile, JobSpec, template_request
from ldm.errors import ConfigError
from ldm.inference.spec import GenerationRequest, SamplerConfig, SamplerName, Shortcuts


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"images_per_prompt": 0}, "images_per_prompt must be at least 1, got 0"),
        ({"images_per_shard": 0}, "images_per_shard must be at least 1, got 0"),
        ({"batch_size": -1}, "batch_size must be at least 1, got -1"),
        ({"cards": 0}, "cards must be at least 1, got 0"),
        ({"max_parallel": 0}, "max_parallel must be at least 1, got 0"),
        ({"time_limit_min": 0}, "time_limit_min must be at least 1, got 0"),
        ({"precision": "half"}, "precision must be one of full, autocast, got 'half'"),
        ({"device": "tpu"}, "device must be one of auto, cpu, gpu, dcu, got 'tpu'"),
        ({"safety": "none"}, "safety must be one of keep, blur, black, drop, off, got 'none'"),
        ({"sampler": "euler"}, "sampler must be one of ddim, plms, dpm_solver, lcm, got 'euler'"),
    ],
)
def test_a_job_that_cannot_be_is_refused(values, message):
    with pytest.raises(ConfigError) as caught:
        JobSpec(**values)
    assert str(caught.value) == message


@pytest.mark.parametrize("name", ["", ".", "-x", ".hidden", "a/b", "a b", "a\nb", "a%b", "a'b"])
def test_a_name_that_no_folder_or_job_should_have_is_refused(name):
    with pytest.raises(ConfigError, match="name must be letters, digits"):
        JobSpec(name=name)


@pytest.mark.parametrize("name", ["x", "run-1", "a_b.c+d", "肖像", "2024"])
def test_a_good_name_passes(name):
    assert JobSpec(name=name).name == name


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scheduler": "pbs"}, "scheduler must be one of local, slurm, got 'pbs'"),
        ({"cards_per_node": 0}, "cards_per_node must be at least 1, got 0"),
        ({"cpus_per_card": 0}, "cpus_per_card must be at least 1, got 0"),
        ({"max_array_size": 0}, "max_array_size must be at least 1, got 0"),
        ({"omit": ["--mem"]}, "a directive is written by its long name without dashes, got '--mem'"),
        ({"directives": {"Mem": "1"}}, "a directive is written by its long name without dashes, got 'Mem'"),
        ({"env": {"A-B": "1"}}, "env must name variables of letters, digits and _, got 'A-B'"),
        ({"setup": ["module load x"]}, "setup is for jobs of a scheduler; this profile has scheduler: local"),
        ({"partition": "x"}, "partition is for jobs of a scheduler; this profile has scheduler: local"),
        ({"price_per_card_hour": -1.0}, "price_per_card_hour must not be negative, got -1.0"),
    ],
)
def test_a_cluster_that_cannot_be_is_refused(values, message):
    with pytest.raises(ConfigError) as caught:
        ClusterProfile(**values)
    assert str(caught.value) == message


def test_the_template_takes_size_and_guidance_of_the_model_unless_the_job_gives_them():
    template = template_request(JobSpec(width=128), size=64, guidance_scale=3.0)
    assert (template.height, template.width, template.sampler.guidance_scale) == (64, 128, 3.0)
    assert template_request(JobSpec(guidance_scale=0.0), size=64, guidance_scale=3.0).sampler.guidance_scale == 0.0


def test_the_template_says_what_the_job_says():
    spec = JobSpec(negative_prompt="blurry", seed=7, sampler="ddim", steps=9, guidance_scale=2.0, eta=0.5)
    sampler = SamplerConfig(SamplerName.DDIM, steps=9, guidance_scale=2.0, eta=0.5)
    expected = GenerationRequest(prompt="", negative_prompt="blurry", seed=7, height=64, width=64, sampler=sampler)
    assert template_request(spec, size=64, guidance_scale=3.0) == expected


def test_the_template_leaves_out_what_the_job_leaves_out():
    spec = JobSpec(cache_interval=3, guidance_until=0.5, merge_tokens=0.25)
    shortcuts = template_request(spec, size=64, guidance_scale=3.0).sampler.shortcuts
    assert shortcuts == Shortcuts(cache_interval=3, guidance_until=0.5, merge_tokens=0.25)
    with pytest.raises(ConfigError, match=r"^cache_interval must be in 1..5 .*, got 6 \(from the job's settings\)$"):
        template_request(JobSpec(cache_interval=6), size=64, guidance_scale=3.0)


def test_settings_that_no_picture_can_have_are_an_error_of_the_settings():
    with pytest.raises(ConfigError, match=r"^steps must be in 1..1000, got 0 \(from the job's settings\)$"):
        template_request(JobSpec(steps=0), size=64, guidance_scale=3.0)
