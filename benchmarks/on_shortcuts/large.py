"""What each kind of network call takes at the size of SD v1, with random weights, for one picture."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence

import torch
from on_processor import weights
from safetensors.torch import load_file

from ldm.inference.pipeline import Pipeline
from ldm.inference.runtime import dtype_name
from ldm.inference.spec import NO_SHORTCUTS, Shortcuts
from ldm.models.diffusion.guidance import guided, network
from on_shortcuts.clock import in_turns
from on_shortcuts.settings import MERGED

SCALE = 7.5
T, NEXT_T = 501.0, 500.0
CACHED = Shortcuts(cache_interval=5)


class Large:
    """A network of a config, in the arithmetic that the product chooses; the folder keeps its weights."""

    def __init__(self, config: Path, folder: Path, sizes: Sequence[int]) -> None:
        weights.make(config, folder, sizes)
        self.sizes = sizes
        self.model = Pipeline.load(config, folder / "model.safetensors", device="cpu").model
        self._given = load_file(str(folder / "inputs.safetensors"))

    @property
    def dtype(self) -> str:
        return dtype_name(self.model.dtype)

    @torch.inference_mode()
    def costs(self, rounds: int) -> Dict[str, Dict[str, List[float]]]:
        """By the size in px, seconds of each kind of call, a number a round."""
        return {str(size): in_turns(self._calls(size), rounds) for size in self.sizes}

    def _calls(self, size: int) -> Dict[str, Callable[[], Any]]:
        x = self._given[f"start-{size}"]
        uncond, cond = self._given["text"].chunk(2)

        def call(shortcuts: Shortcuts = NO_SHORTCUTS, scale: float = SCALE) -> Callable[[], Any]:
            predict = guided(network(self.model, shortcuts), cond, uncond, scale)
            if shortcuts.cache_interval == 1:
                return partial(predict, x, T)
            predict(x, T)  # gives the map that every call at the next timestep reuses
            return partial(predict, x, NEXT_T)

        return {
            "whole guided": call(),
            "merged guided": call(Shortcuts(merge_tokens=MERGED)),
            "reused guided": call(CACHED),
            "reused": call(CACHED, scale=1.0),
            "whole": call(scale=1.0),
        }
