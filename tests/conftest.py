"""What all tests share: the fixtures of the private Slurm cluster."""

from __future__ import annotations

pytest_plugins = ("tests.slurm_lab.fixtures",)
