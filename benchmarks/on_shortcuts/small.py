"""The small model painting by every setting: how long it takes, how often it calls its network, what becomes of it."""

from __future__ import annotations

from functools import partial
from typing import Any, Dict, List, Sequence

import numpy as np

from ldm.inference.models import SHIPPED, find_files, read_shape
from ldm.inference.pipeline import Pipeline
from ldm.inference.runtime import Precision
from ldm.inference.spec import GenerationRequest, SamplerConfig
from ldm.training.acceptance import Task, acceptance_tasks, judge_pictures, summarise
from ldm.training.emoji import load_sprites
from ldm.training.score import Judge
from on_shortcuts.clock import in_turns
from on_shortcuts.settings import BASE, PAINTED

BATCH = 8
SHEET = 6  # pictures of each setting that the page shows
FIRST_SEED, OTHER_SEED = 42, 1042
OTHER = "other seeds"  # no setting: all of the work, for a yardstick
PEAK = 255.0

Pictures = List[np.ndarray]


class Small:
    """emoji-v1 on the CPU."""

    def __init__(self, prompts: int, precision: Precision = Precision.AUTOCAST) -> None:
        files = find_files(SHIPPED)
        self.tasks: Sequence[Task] = acceptance_tasks()[:prompts]
        self.pipeline = Pipeline.load(files.config, files.checkpoint, device="cpu", precision=precision)
        self._size = read_shape(files.config).size
        self._judge = Judge(load_sprites())

    def paint(self, sampler: SamplerConfig, count: int, first_seed: int = FIRST_SEED) -> Pictures:
        """The first `count` tasks, each with the same seed whatever the setting."""
        requests = [
            GenerationRequest(task.prompt, seed=seed, height=self._size, width=self._size, sampler=sampler)
            for seed, task in enumerate(self.tasks[:count], first_seed)
        ]
        batches = [requests[first : first + BATCH] for first in range(0, len(requests), BATCH)]
        return [np.asarray(image.pixels) for batch in batches for image in self.pipeline.generate(batch)]

    def speed(self, rounds: int) -> Dict[str, List[float]]:
        """Seconds of a batch by each setting, a number a round."""
        paints = {setting.name: partial(self.paint, setting.sampler, BATCH) for setting in PAINTED}
        return in_turns(paints, rounds)

    def calls(self, sampler: SamplerConfig) -> Dict[str, int]:
        """How often one picture calls the network in each way.

        It is whole where its deepest block runs, and guided where noise comes out for two.
        """
        network = self.pipeline.model.model.diffusion_model
        counted = dict.fromkeys(("whole guided", "whole", "reused guided", "reused"), 0)
        deep: List[bool] = []

        def count(_module: Any, _given: Any, noise: Any) -> None:
            counted[("whole" if deep else "reused") + (" guided" if len(noise) == 2 else "")] += 1
            deep.clear()

        hooks = [
            network.middle_block.register_forward_hook(lambda *_: deep.append(True)),
            network.register_forward_hook(count),
        ]
        try:
            self.paint(sampler, 1)
        finally:
            for hook in hooks:
                hook.remove()
        return counted

    def differences(self) -> Dict[str, Dict[str, Any]]:
        """What each setting's pictures are against those of PLMS at 50 steps, and how many show what was asked for."""
        base = self.paint(BASE.sampler, len(self.tasks))
        latents = [self.pipeline.encode_image(pixels) for pixels in base]
        found = {}
        for name in (*(setting.name for setting in PAINTED), OTHER):
            made = base if name == BASE.name else self._painted_by(name)
            shares = summarise(judge_pictures(self._judge, self.tasks, made))["all"]
            found[name] = {
                "psnr": [psnr(*pair) for pair in zip(made, base)],
                "latent": [
                    float((self.pipeline.encode_image(pixels) - latent).square().mean().sqrt())
                    for pixels, latent in zip(made, latents)
                ],
                "object": shares["object_top1"],
                "background": shares["background"],
                "sheet": [pixels.tolist() for pixels in made[:SHEET]],
            }
        return found

    def _painted_by(self, name: str) -> Pictures:
        samplers = {setting.name: setting.sampler for setting in PAINTED}
        if name == OTHER:
            return self.paint(BASE.sampler, len(self.tasks), OTHER_SEED)
        return self.paint(samplers[name], len(self.tasks))


def psnr(made: np.ndarray, base: np.ndarray) -> float:
    """Peak signal to noise in dB; equal pictures are counted as one level off in one number."""
    error = float(((made.astype(np.float64) - base) ** 2).sum())
    return float(10 * np.log10(PEAK**2 * base.size / max(error, 1.0)))
