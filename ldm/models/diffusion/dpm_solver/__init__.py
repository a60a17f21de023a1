"""DPM-Solver++ at the import path that configs and scripts name."""

from ldm.models.diffusion.dpm_solver.sampler import DPMSolverSampler

__all__ = ["DPMSolverSampler"]
