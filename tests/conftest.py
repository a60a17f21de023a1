"""What all tests share: a private Slurm cluster, a tiny model and a full disk."""

from __future__ import annotations

pytest_plugins = ("tests.slurm_lab.fixtures", "tests.tiny", "tests.disks")
