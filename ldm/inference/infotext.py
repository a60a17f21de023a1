"""The "parameters" text that A1111 writes into a picture: what was asked for, readable by the tools that people have.

    prompt, any number of lines
    Negative prompt: any number of lines, left out when empty
    Steps: 50, Sampler: PLMS, CFG scale: 7.5, Seed: 42, Size: 512x512, Version: sdbatch

The last line is a list of `key: value`; a value with a comma, colon or line break is JSON text in double quotes, and a
key that is its own value stands alone. Keys that are not known here survive reading and writing, in their order. The
grammar has no escape for a line of the prompt that begins with "Negative prompt:": what follows it reads as negative.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Mapping

from ldm.inference.spec import GenerationRequest, SamplerName, Spacing

NEGATIVE = "Negative prompt:"
SOFTWARE = "sdbatch"

# The third is not A1111's "DPM++ 2M": the steps are spread evenly over the continuous time, and end at first order.
SAMPLER_LABELS = {
    SamplerName.DDIM: "DDIM",
    SamplerName.PLMS: "PLMS",
    SamplerName.DPM_SOLVER: "DPM-Solver++ 2M (CompVis)",
    SamplerName.LCM: "LCM",
}

KEY_ORDER = (
    "Steps", "Sampler", "Schedule type", "CFG scale", "Seed", "Size", "Model hash", "Model", "Denoising strength",
    "Init image hash", "RNG",
)  # fmt: skip

ITEM = re.compile(r'\s*([^,:"]*[^,:"\s])\s*(?::\s*("(?:\\.|[^\\"])*"|[^,]*))?(?:,|$)')
LEAST_PAIRS = 3  # fewer than three pairs are taken for a prompt, as A1111 does


@dataclass(frozen=True)
class Infotext:
    """The three parts of the text; `parameters` keeps its order, and its values are as they were before quoting."""

    prompt: str
    negative_prompt: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)


def describe(request: GenerationRequest, extra: Mapping[str, str | None] | None = None) -> Infotext:
    """What A1111 would say of `request`, in its order of keys, with `extra`; values that are None are left out.

    RNG is CPU because a request's noise is drawn there: A1111, set so, draws the same for the same seed.
    """
    sampler, init = request.sampler, request.init
    shortcuts = sampler.shortcuts
    values: dict[str, str | None] = {
        "Steps": str(sampler.steps),
        "Sampler": SAMPLER_LABELS[sampler.name],
        "Schedule type": None if sampler.schedule is Spacing.UNIFORM else sampler.schedule.value.capitalize(),
        "CFG scale": _number(sampler.guidance_scale),
        "Seed": str(request.seed),
        "Size": f"{request.width}x{request.height}",
        "Denoising strength": None if init is None else _number(init.strength),
        "Init image hash": None if init is None else init.sha256[:10],
        "RNG": "CPU",
        "Eta DDIM": _number(sampler.eta) if sampler.eta else None,
        "DeepCache interval": str(shortcuts.cache_interval) if shortcuts.cache_interval > 1 else None,
        "Guidance until": _number(shortcuts.guidance_until) if shortcuts.guidance_until < 1 else None,
        "Token merging ratio": _number(shortcuts.merge_tokens) if shortcuts.merge_tokens else None,
        **(extra or {}),
    }
    keys = [key for key in KEY_ORDER if key in values] + [key for key in values if key not in KEY_ORDER]
    known = {key: value for key, value in ((key, values[key]) for key in keys) if value is not None}
    return Infotext(request.prompt, request.negative_prompt, {**known, "Version": SOFTWARE})


def format_infotext(infotext: Infotext) -> str:
    """The text as A1111 writes it; `parse_infotext` reads it back."""
    negative = f"\n{NEGATIVE} {infotext.negative_prompt}" if infotext.negative_prompt else ""
    items = [key if key == value else f"{key}: {_quoted(value)}" for key, value in infotext.parameters.items()]
    return f"{infotext.prompt}{negative}\n{', '.join(items)}".strip()


def parse_infotext(text: str) -> Infotext:
    """Read the text of A1111, of any of its versions, of the tools that write like it, or of `format_infotext`."""
    lines = text.strip().split("\n")
    parameters = _parse_parameters(lines[-1])
    if parameters:
        lines.pop()
    first_negative = next((i for i, line in enumerate(lines) if line.startswith(NEGATIVE)), len(lines))
    negative = "\n".join(lines[first_negative:])[len(NEGATIVE) :]
    return Infotext("\n".join(lines[:first_negative]).strip(), negative.strip(), parameters)


def _parse_parameters(line: str) -> dict[str, str]:
    """The pairs of the last line, or none if it is a line of a prompt such as `street, time: night, lens: 35mm`."""
    found: list[tuple[str, str | None]] = [(m.group(1), m.group(2)) for m in ITEM.finditer(line)]
    pairs = {key: _unquoted(value) for key, value in found if value is not None}
    if len(pairs) < LEAST_PAIRS or not pairs.get("Steps", "").isdigit():
        return {}
    return {key: key if value is None else _unquoted(value) for key, value in found}


def _number(value: float) -> str:
    """7.0 as 7, which is how A1111 shows it."""
    return str(int(value)) if value == int(value) else str(value)


def _quoted(value: str) -> str:
    if re.search(r'[,:\n]|^"', value) or value != value.strip():
        return json.dumps(value, ensure_ascii=False)
    return value


def _unquoted(value: str) -> str:
    value = value.strip()
    if not (len(value) > 1 and value[0] == value[-1] == '"'):
        return value
    try:
        return str(json.loads(value))
    except ValueError:
        return value
