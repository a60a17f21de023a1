"""What is left out is left out where it was asked for, whatever sampler asks; and by default nothing is."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, List, Optional, Type

import numpy as np
import pytest
import torch
from torch import Tensor

from ldm.inference.spec import Shortcuts
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.dpm_solver import DPMSolverSampler
from ldm.models.diffusion.guidance import last_guided
from ldm.models.diffusion.lcm import LCMSampler
from ldm.models.diffusion.plms import PLMSSampler
from ldm.models.diffusion.sampler import Sampler
from ldm.modules.diffusionmodules.schedule import make_beta_schedule
from ldm.modules.recall import Recall
from ldm.modules.token_merging import TokenMerging

SAMPLERS = [DDIMSampler, PLMSSampler, DPMSolverSampler, LCMSampler]
ALPHAS = np.cumprod(1 - make_beta_schedule("linear", 1000, 0.00085, 0.012))


class Model:
    """A stand-in for the network that notes how it is called."""

    def __init__(self) -> None:
        self.num_timesteps = 1000
        self.alphas_cumprod = torch.from_numpy(ALPHAS)
        self.device = torch.device("cpu")
        self.calls: List[Any] = []

    recalls = True

    def apply_model(self, x: Tensor, t: Tensor, cond: Tensor, recall: Recall) -> Tensor:
        cache, merging = recall.cache, recall.merging
        whole = cache is None or cache.map is None
        if cache is not None and whole:
            cache.map = torch.zeros(len(cond), 1)
        self.calls.append(SimpleNamespace(t=float(t[0]), rows=len(cond), whole=whole, cache=cache, merging=merging))
        return torch.cat([x * 0.1 + text.mean() for text in cond.split(len(x))])


def calls(cls: Type[Sampler], steps: int, shortcuts: Shortcuts, strength_steps: Optional[int] = None) -> List[Any]:
    model = Model()
    cls(model).sample(
        S=steps,
        batch_size=2,
        shape=(4, 8, 8),
        conditioning=torch.ones(2, 7, 16),
        unconditional_conditioning=torch.zeros(2, 7, 16),
        unconditional_guidance_scale=3.0,
        strength_steps=strength_steps,
        shortcuts=shortcuts,
        verbose=False,
    )
    return model.calls


@pytest.mark.parametrize("cls", SAMPLERS)
def test_by_default_nothing_is_left_out(cls: Type[Sampler]) -> None:
    made = calls(cls, 10, Shortcuts())
    assert len(made) == 11 if cls is PLMSSampler else 10
    for call in made:
        assert (call.rows, call.cache, call.merging) == (4, None, None)


@pytest.mark.parametrize("cls", SAMPLERS)
@pytest.mark.parametrize("interval", [2, 3, 5])
@pytest.mark.parametrize("steps", [1, 4, 10, 25])
def test_the_whole_network_runs_once_in_so_many_steps(cls: Type[Sampler], interval: int, steps: int) -> None:
    made = calls(cls, steps, Shortcuts(cache_interval=interval))
    assert sum(call.whole for call in made) == math.ceil(steps / interval)
    assert made[0].whole
    assert all(call.merging is None for call in made)


@pytest.mark.parametrize("cls", SAMPLERS)
def test_each_run_has_a_memory_of_its_own(cls: Type[Sampler]) -> None:
    sampler = cls(Model())
    options = {"batch_size": 1, "shape": (4, 8, 8), "conditioning": torch.ones(1, 7, 16)}
    for _ in range(2):
        sampler.sample(S=4, shortcuts=Shortcuts(cache_interval=5), **options)  # type: ignore[arg-type]
    assert sum(call.whole for call in sampler.model.calls) == 2


@pytest.mark.parametrize("cls", SAMPLERS)
@pytest.mark.parametrize(("share", "guided"), [(0.01, 1), (0.5, 5), (0.56, 6), (0.6, 6), (1.0, 10)])
def test_so_many_steps_are_guided(cls: Type[Sampler], share: float, guided: int) -> None:
    made = calls(cls, 10, Shortcuts(guidance_until=share))
    timesteps = {call.t for call in made if call.rows == 4}
    assert len(timesteps) == guided
    assert {call.t for call in made if call.rows == 2}.isdisjoint(timesteps)
    assert min(timesteps) > max((call.t for call in made if call.rows == 2), default=-1.0)


@pytest.mark.parametrize("cls", SAMPLERS)
def test_the_share_is_of_the_steps_that_img2img_takes(cls: Type[Sampler]) -> None:
    made = calls(cls, 10, Shortcuts(guidance_until=0.5), strength_steps=4)
    assert len({call.t for call in made}) == 4
    assert len({call.t for call in made if call.rows == 4}) == 2


def test_a_share_of_50_steps_is_what_it_says() -> None:
    """0.56 x 50 is 28.000000000000004."""
    sampler = DDIMSampler(Model())
    sampler.make_schedule(50)
    assert last_guided(sampler.table, 0.56) == sampler.table.timesteps[27]


def test_where_guidance_ends_the_deep_map_is_made_anew() -> None:
    made = calls(DDIMSampler, 10, Shortcuts(cache_interval=5, guidance_until=0.3))
    assert [call.whole for call in made] == [True, False, False, True, False, False, False, False, True, False]


def test_tokens_are_merged_by_the_latents_size_and_the_timestep() -> None:
    made = calls(DDIMSampler, 4, Shortcuts(merge_tokens=0.5))
    assert [call.merging for call in made] == [TokenMerging(0.5, 8, 8, int(call.t)) for call in made]
