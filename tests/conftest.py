"""What all tests share: a private Slurm cluster, a tiny model and a full disk."""

from __future__ import annotations

import pytest

pytest_plugins = ("tests.slurm_lab.fixtures", "tests.tiny", "tests.disks")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave out what needs a card where torch sees none; it says so in the summary."""
    if item.get_closest_marker("gpu") is not None:
        from ldm.inference.runtime import visible_cards

        if not visible_cards():
            pytest.skip("needs a GPU or a DCU, and torch sees none here")
