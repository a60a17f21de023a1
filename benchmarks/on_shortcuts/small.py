"""The small model painting by every setting: how long it takes, how often it calls its network, what becomes of it."""

from __future__ import annotations

import time
from typing import Any, Dict, List, Sequence

import numpy as np

from ldm.inference.models import SHIPPED, find_files, read_shape
from ldm.inference.pipeline import Pipeline
from ldm.inference.spec import GenerationRequest, SamplerConfig
from ldm.training.acceptance import Task, acceptance_tasks, judge_pictures, summarise
from ldm.training.emoji import load_sprites
from ldm.training.score import Judge
from on_shortcuts.settings import BASE, SETTINGS

BATCH = 8
SHEET = 8  # pictures of each setting that the page shows
FIRST_SEED = 42
PEAK = 255.0

Pictures = List[np.ndarray]


class Small:
    """emoji-v1 on the CPU."""

    def __init__(self, prompts: int) -> None:
        files = find_files(SHIPPED)
        self.tasks: Sequence[Task] = acceptance_tasks()[:prompts]
        self.pipeline = Pipeline.load(files.config, files.checkpoint, device="cpu")
        self._size = read_shape(files.config).size
        self._judge = Judge(load_sprites())

    def paint(self, sampler: SamplerConfig, count: int) -> Pictures:
        """The first `count` tasks, each with the same seed whatever the setting."""
        requests = [
            GenerationRequest(task.prompt, seed=seed, height=self._size, width=self._size, sampler=sampler)
            for seed, task in enumerate(self.tasks[:count], FIRST_SEED)
        ]
        batches = [requests[first : first + BATCH] for first in range(0, len(requests), BATCH)]
        return [np.asarray(image.pixels) for batch in batches for image in self.pipeline.generate(batch)]

    def speed(self, rounds: int) -> Dict[str, List[float]]:
        """Seconds of a batch, a number a round; in a round every setting has its turn: ratios are of one time."""
        found: Dict[str, List[float]] = {setting.name: [] for setting in SETTINGS}
        for setting in SETTINGS:
            self.paint(setting.sampler, BATCH)
        for _ in range(rounds):
            for setting in SETTINGS:
                start = time.perf_counter()
                self.paint(setting.sampler, BATCH)
                found[setting.name].append(time.perf_counter() - start)
        return found

    def calls(self, sampler: SamplerConfig) -> Dict[str, int]:
        """How often one picture calls the network: whole or with a deep map reused, guided or with the text alone."""
        model, counted = self.pipeline.model, {"whole guided": 0, "whole": 0, "reused guided": 0, "reused": 0}
        apply_model = model.apply_model

        def count(x: Any, t: Any, cond: Any, cache: Any = None, merging: Any = None) -> Any:
            reuses = cache is not None and cache.map is not None
            counted[("reused" if reuses else "whole") + (" guided" if len(x) == 2 else "")] += 1
            return apply_model(x, t, cond, cache, merging)

        model.apply_model = count
        try:
            self.paint(sampler, 1)
        finally:
            del model.apply_model
        return counted

    def differences(self) -> Dict[str, Dict[str, Any]]:
        """What each setting's pictures are against those of PLMS at 50 steps, and how many show what was asked for."""
        base = self.paint(BASE.sampler, len(self.tasks))
        latents = [self.pipeline.encode_image(pixels) for pixels in base]
        found = {}
        for setting in SETTINGS:
            made = base if setting is BASE else self.paint(setting.sampler, len(self.tasks))
            shares = summarise(judge_pictures(self._judge, self.tasks, made))["all"]
            found[setting.name] = {
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


def psnr(made: np.ndarray, base: np.ndarray) -> float:
    """Peak signal to noise in dB; equal pictures are counted as one level off in one number."""
    error = float(((made.astype(np.float64) - base) ** 2).sum())
    return float(10 * np.log10(PEAK**2 * base.size / max(error, 1.0)))
