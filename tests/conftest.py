"""What all tests share: a private Slurm cluster, a tiny model and a full disk."""

from __future__ import annotations

from typing import List

import pytest

pytest_plugins = ("tests.slurm_lab.fixtures", "tests.tiny", "tests.disks")


def pytest_collection_modifyitems(config: pytest.Config, items: List[pytest.Item]) -> None:
    """Where several processes share the tests, one of them has all those on Slurm, and so one cluster at a time."""
    for item in items if config.pluginmanager.hasplugin("xdist") else ():
        if item.get_closest_marker("slurm") is not None:
            item.add_marker(pytest.mark.xdist_group("slurm"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave out what needs a card where torch sees none; it says so in the summary."""
    if item.get_closest_marker("gpu") is not None:
        from ldm.inference.runtime import visible_cards

        if not visible_cards():
            pytest.skip("needs a GPU or a DCU, and torch sees none here")
