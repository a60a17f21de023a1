"""The picture that is asked of every program; the standard library alone, as diffusers' programs read it too."""

from __future__ import annotations

PROMPT = "a photograph of a cat playing a white ball in a lovely garden"
SEED = 42
GUIDANCE = 7.5
STEPS = 10
SIZE = 256  # px a side
