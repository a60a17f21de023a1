"""The safety checker as the pipeline uses it: read when the first picture is there, counting what it flags."""

from __future__ import annotations

from pathlib import Path
from typing import List, NamedTuple, Optional, Sequence

import torch

from ldm.inference.images import Pixels
from ldm.inference.safety import SafetyChecker, SafetyPolicy, apply


class Inspected(NamedTuple):
    """A picture (H,W,3) uint8 after the policy, None if it was dropped."""

    pixels: Optional[Pixels]
    flagged: bool


class Censor:
    """A checker's folder and what becomes of the pictures that it flags. Its import and weights wait for the first."""

    def __init__(self, folder: Path, policy: SafetyPolicy) -> None:
        self.folder = folder
        self.policy = policy
        self._checker: Optional[SafetyChecker] = None

    def inspect(self, pictures: Sequence[Pixels], device: torch.device) -> List[Inspected]:
        """Each picture as the policy leaves it, and if it was flagged. WeightsError if the folder is no checker's."""
        if self._checker is None:
            self._checker = SafetyChecker.load(self.folder, device)
        flags = self._checker.check(pictures)
        return [Inspected(apply(self.policy, pixels, flagged=flag), flag) for pixels, flag in zip(pictures, flags)]
