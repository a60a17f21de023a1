"""What all tests share: a private Slurm cluster, a tiny model and a full disk."""

from __future__ import annotations

from typing import Iterator

import pytest

pytest_plugins = ("tests.slurm_lab.fixtures", "tests.tiny", "tests.disks")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test finds what another run of the tests has kept, nor leaves anything in the home of who runs it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave out what needs a card where torch sees none; it says so in the summary."""
    if item.get_closest_marker("gpu") is not None:
        from ldm.inference.runtime import visible_cards

        if not visible_cards():
            pytest.skip("needs a GPU or a DCU, and torch sees none here")
