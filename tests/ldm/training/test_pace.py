"""The learning rate and the end of a run that is budgeted in steps or minutes."""

from __future__ import annotations

import pytest

pytest.importorskip("pytorch_lightning", reason="training is an extra: pip install -e .[train]")

from ldm.training.pace import Pace


def test_the_rate_rises_to_its_peak_and_falls_with_the_budget() -> None:
    pace = Pace(max_steps=1000, max_minutes=None, warmup_steps=10)
    assert pace.factor(0) == pytest.approx(0.1, rel=0.01)
    assert pace.factor(10) == pytest.approx(1.0, rel=0.01)
    assert pace.factor(500) == pytest.approx(0.505, rel=0.01)
    assert pace.factor(1000) == pytest.approx(0.01)


def test_minutes_count_when_they_run_out_first() -> None:
    pace = Pace(max_steps=1000, max_minutes=10.0, warmup_steps=1)
    pace.minutes_before = 9.0
    assert pace.used(100) == pytest.approx(0.9)
    assert pace.used(950) == pytest.approx(0.95)


def test_minutes_before_a_stop_count_after_it() -> None:
    stopped = Pace(max_steps=1000, max_minutes=10.0, warmup_steps=1)
    stopped.minutes_before = 4.0
    resumed = Pace(max_steps=1000, max_minutes=10.0, warmup_steps=1)
    resumed.load_state_dict(stopped.state_dict())
    assert resumed.used(0) == pytest.approx(0.4)
