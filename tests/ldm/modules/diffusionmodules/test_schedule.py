"""Noise schedules and step tables: the original's where it works, whole where it fails."""

from __future__ import annotations

import numpy as np
import pytest

from ldm.errors import ConfigError, RequestError
from ldm.modules.diffusionmodules.schedule import (
    ddim_sigmas,
    make_beta_schedule,
    make_step_table,
    posterior_tables,
    spread_timesteps,
)

ALPHAS = np.cumprod(1 - make_beta_schedule("linear", 1000, 0.00085, 0.012))
# Step counts at which the original reaches past its own schedule and fails.
IMPOSSIBLE = [3, 9, 27, 36, 37, *range(101, 112), *range(251, 334), *range(501, 1001)]


def original(steps: int) -> np.ndarray:
    """The original's own rule: a stride, and one added."""
    return np.arange(0, 1000, 1000 // steps) + 1


def test_the_last_signal_power_is_that_of_sd_v1() -> None:
    assert ALPHAS[-1] == pytest.approx(0.004660, abs=1e-6)


@pytest.mark.parametrize("steps", sorted(set(range(1, 501)) - set(IMPOSSIBLE)))
def test_timesteps_are_the_originals_where_it_works(steps: int) -> None:
    assert np.array_equal(spread_timesteps(1000, steps)[::-1], original(steps))


@pytest.mark.parametrize("steps", IMPOSSIBLE)
def test_only_the_impossible_timestep_is_dropped_where_the_original_fails(steps: int) -> None:
    ours = spread_timesteps(1000, steps)[::-1]
    assert np.array_equal(ours, original(steps)[:-1])
    assert ours.max() <= 999


@pytest.mark.parametrize(("asked", "real"), [(30, 31), (60, 63), (80, 84), (50, 50), (7, 8)])
def test_the_real_count_may_differ_from_the_asked_one(asked: int, real: int) -> None:
    assert len(spread_timesteps(1000, asked)) == real


@pytest.mark.parametrize("spacing", ["uniform", "quad"])
@pytest.mark.parametrize("steps", [1, 10, 50, 200])
def test_a_table_leads_down_without_a_gap(steps: int, spacing: str) -> None:
    table = make_step_table(ALPHAS, steps, spacing)
    assert np.array_equal(table.alpha[1:], table.alpha_next[:-1])
    assert (np.diff(table.timesteps) <= 0).all()
    assert table.alpha_next[-1] == ALPHAS[0]
    assert np.array_equal(table.alpha, ALPHAS[table.timesteps])


def test_the_last_steps_of_a_table_are_its_cleanest() -> None:
    table = make_step_table(ALPHAS, 20)
    assert np.array_equal(table.last(5).timesteps, table.timesteps[-5:])
    assert np.array_equal(table.last(21).timesteps, table.timesteps)


def test_eta_one_gives_the_noise_of_ddpm() -> None:
    # With every timestep taken, eta 1 must be the posterior's own deviation (DDIM section 4.1).
    table = make_step_table(ALPHAS, 1000)
    variance, _, _ = posterior_tables(make_beta_schedule("linear", 1000, 0.00085, 0.012))
    assert np.allclose(ddim_sigmas(table, 1.0)[:-1] ** 2, variance[table.timesteps][:-1], rtol=1e-9)


def test_without_eta_no_noise_is_added() -> None:
    assert not ddim_sigmas(make_step_table(ALPHAS, 20), 0.0).any()


@pytest.mark.parametrize("schedule", ["linear", "cosine", "sqrt_linear", "sqrt"])
def test_every_schedule_loses_signal_at_every_step(schedule: str) -> None:
    betas = make_beta_schedule(schedule, 1000)
    assert ((betas > 0) & (betas < 1)).all()


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(ConfigError, match="beta_schedule must be linear, cosine, sqrt_linear or sqrt, got 'karras'"):
        make_beta_schedule("karras", 1000)
    with pytest.raises(RequestError, match="schedule must be 'uniform' or 'quad', got 'even'"):
        spread_timesteps(1000, 10, "even")
