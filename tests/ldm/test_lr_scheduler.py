"""The factor on the learning rate over a run."""

from __future__ import annotations

import pytest

from ldm.lr_scheduler import LambdaLinearScheduler


def test_one_cycle_rises_to_its_peak_and_falls_to_its_low() -> None:
    curve = LambdaLinearScheduler([10], f_min=[0.1], f_max=[1.0], f_start=[0.0], cycle_lengths=[110])
    assert [curve(step) for step in (0, 5, 10)] == [0.0, 0.5, 1.0]
    assert curve(60) == pytest.approx(0.55)
    assert curve(10_000) == 0.1


def test_the_curve_of_the_v1_config_stays_at_its_peak() -> None:
    curve = LambdaLinearScheduler([10000], f_min=[1.0], f_max=[1.0], f_start=[1e-6], cycle_lengths=[10**13])
    assert curve(0) == pytest.approx(1e-6)
    assert curve(10**9) == 1.0


def test_cycles_follow_each_other() -> None:
    curve = LambdaLinearScheduler([0, 0], f_min=[1.0, 2.0], f_max=[1.0, 2.0], f_start=[1.0, 2.0], cycle_lengths=[5, 5])
    assert [curve(4), curve(5)] == [1.0, 2.0]


def test_lists_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="one entry a cycle"):
        LambdaLinearScheduler([1, 2], f_min=[1.0], f_max=[1.0], f_start=[1.0], cycle_lengths=[5])
