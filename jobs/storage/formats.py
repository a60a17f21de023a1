"""What is written inside a picture about itself: one text, by which `verify` knows it again."""

from __future__ import annotations

from ldm.inference.infotext import describe, format_infotext
from ldm.inference.spec import GenerationRequest
from ldm.inference.weightfile import MODEL_HASH_DIGITS


def parameters_text(request: GenerationRequest, *, model: str, checkpoint_sha256: str) -> str:
    """The parameters of a picture of this request, by a model and its checkpoint; that of a rehearsal has no sha256."""
    extra = {"Model hash": checkpoint_sha256[:MODEL_HASH_DIGITS] or None, "Model": model}
    return format_infotext(describe(request, extra))
