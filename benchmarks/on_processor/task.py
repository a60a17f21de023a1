"""The pictures that are asked of every program; the standard library alone, as diffusers' programs read it too."""

from __future__ import annotations

PROMPTS = (  # the first, but where chance is to even out
    "a photograph of a cat playing a white ball in a lovely garden",
    "an oil painting of a lighthouse in a storm",
    "a bowl of ramen on a wooden table, top view",
    "three astronauts riding bicycles through Beijing, pencil sketch",
)
PROMPT = PROMPTS[0]
SEED = 42
GUIDANCE = 7.5
STEPS = 10
SIZE = 256  # px a side
