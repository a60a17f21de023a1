"""The table and the plot of the shortcuts say what was measured."""

from __future__ import annotations

import xml.etree.ElementTree
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Dict

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The modules beside the script, as it finds them."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from on_shortcuts import page, settings

    return SimpleNamespace(page=page, settings=settings)


def kept(parts: SimpleNamespace) -> Dict[str, Any]:
    """Every setting twice as fast as PLMS at 50 steps."""
    base, names = parts.settings.BASE.name, [setting.name for setting in parts.settings.SETTINGS]
    calls = {"whole guided": 17, "whole": 0, "reused guided": 34, "reused": 0}
    found = {"psnr": [30.0, 40.0, 50.0], "latent": [0.1, 0.2, 0.3], "object": 0.915, "background": 1.0}
    return {
        "seconds": {name: [2.0, 4.0] if name == base else [1.0, 2.0] for name in names},
        "calls": dict.fromkeys(names, calls),
        "difference": dict.fromkeys(names, found),
    }


def test_a_row_has_ratios_of_one_round_and_medians_of_the_pictures(parts: SimpleNamespace) -> None:
    rows = parts.page.table(kept(parts))
    assert len(rows) == 2 + len(parts.settings.SETTINGS)
    assert rows[2] == "| PLMS, 50 steps | 51, 34 reuse | 1 |  |  | 91.5% | 100.0% |"
    assert rows[3] == "| cache_interval=2 | 51, 34 reuse | 2.00 x (2.00 to 2.00) | 40.0 | 0.200 | 91.5% | 100.0% |"


def test_every_setting_is_a_dot_of_the_plot(parts: SimpleNamespace) -> None:
    plot = xml.etree.ElementTree.fromstring(parts.page.svg(kept(parts)))
    dots = plot.findall("{http://www.w3.org/2000/svg}circle")
    assert len(dots) == len(parts.settings.SETTINGS) + len(parts.page.COLOURS)


def test_settings_have_names_of_their_own_and_kinds_with_a_colour(parts: SimpleNamespace) -> None:
    settings = parts.settings.SETTINGS
    assert len({setting.name for setting in settings}) == len(settings)
    assert {setting.kind for setting in settings} == set(parts.page.COLOURS)
