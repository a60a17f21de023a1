"""What all tests share: a private Slurm cluster and a tiny model."""

from __future__ import annotations

pytest_plugins = ("tests.slurm_lab.fixtures", "tests.tiny")
