"""What is compared: every setting is a way to paint the same picture with less work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Tuple

from ldm.inference.spec import SamplerConfig, SamplerName, Shortcuts

SCALE = 3.0  # the guidance that the small model paints best with
MERGED = 0.5
SIZES = (256, 512)  # px, of the pictures that the large network is measured for


@dataclass(frozen=True)
class Setting:
    """One way, what it is called, and the kind of shortcut that gives its dot a colour."""

    name: str
    kind: str
    sampler: SamplerConfig

    @property
    def painted(self) -> bool:
        """Whether the small model can show it: it attends to nothing at its largest maps, so has none to merge."""
        return not self.sampler.shortcuts.merge_tokens


def _plms(steps: int = 50, **shortcuts: float) -> SamplerConfig:
    return _by(SamplerName.PLMS, steps, **shortcuts)


def _by(name: SamplerName, steps: int, **shortcuts: float) -> SamplerConfig:
    return SamplerConfig(name, steps, SCALE, shortcuts=Shortcuts(**shortcuts))  # type: ignore[arg-type]


BASE = Setting("PLMS, 50 steps", "all of the work", _plms())
SETTINGS: Tuple[Setting, ...] = (
    BASE,
    *(Setting(f"cache_interval={n}", "feature cache", _plms(cache_interval=n)) for n in (2, 3, 4, 5)),
    *(Setting(f"guidance_until={u}", "guidance ends early", _plms(guidance_until=u)) for u in (0.8, 0.6, 0.4)),
    Setting(f"merge_tokens={MERGED}", "merged tokens", _plms(merge_tokens=MERGED)),
    Setting("PLMS, 30 steps", "fewer steps", _plms(30)),
    *(Setting(f"DDIM, {n} steps", "fewer steps", _by(SamplerName.DDIM, n)) for n in (50, 25)),
    *(Setting(f"DPM++ 2M, {n} steps", "fewer steps", _by(SamplerName.DPM_SOLVER, n)) for n in (20, 15, 10)),
    Setting("cache_interval=3, guidance_until=0.8", "two at once", _plms(cache_interval=3, guidance_until=0.8)),
    Setting("DPM++ 2M, 15 steps, cache_interval=2", "two at once", _by(SamplerName.DPM_SOLVER, 15, cache_interval=2)),
    *(Setting(f"LCM, {n} steps", "LCM, weights not distilled", _by(SamplerName.LCM, n)) for n in (4, 8)),
)
PAINTED = tuple(setting for setting in SETTINGS if setting.painted)
