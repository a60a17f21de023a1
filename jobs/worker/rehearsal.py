"""The model `rehearsal`: a coloured card for each request, without torch or weights, to try a cluster in seconds.

It sleeps a millisecond a step, so a rehearsal can be as long as one likes. Equal requests give equal files. Only
formats other than PNG need Pillow.
"""

from __future__ import annotations

import functools
import struct
import time
import zlib
from pathlib import Path
from typing import List, Sequence

from jobs.spec import REHEARSAL
from jobs.storage.formats import parameters_text
from jobs.worker.worker import Picture
from ldm.errors import RequestError
from ldm.inference.digests import sha256_of
from ldm.inference.spec import GenerationRequest

SECONDS_PER_STEP = 0.001


def generate(requests: Sequence[GenerationRequest], *, format: str = "png", quality: int = 95) -> List[Picture]:
    """One card a request, in their order; RequestError if an init image is no longer the planned one."""
    return [_picture(request, format, quality) for request in requests]


def _picture(request: GenerationRequest, format: str, quality: int) -> Picture:
    if request.init is not None:
        _check_init(Path(request.init.path), request.init.sha256)
    seconds = request.sampler.steps * SECONDS_PER_STEP
    time.sleep(seconds)
    encode = functools.partial(_card, request, format, quality)
    return Picture(encode=encode, flagged=False, seconds=seconds)


def _check_init(path: Path, sha256: str) -> None:
    try:
        if sha256_of(path) != sha256:
            raise RequestError(f"init image {path} is not the one that was planned: its sha256 differs")
    except OSError as error:
        raise RequestError(f"cannot read the init image {path}: {error.strerror}") from error


def _card(request: GenerationRequest, format: str, quality: int) -> bytes:
    return _png(request) if format == "png" else _encoded_card(request, format, quality)


def _png(request: GenerationRequest) -> bytes:
    """A PNG (8-bit RGB, no filter) of one colour that follows from the request, with its parameters inside."""
    colour = _colour(request)
    rows = (b"\0" + colour * request.width) * request.height
    header = struct.pack(">IIBBBBB", request.width, request.height, 8, 2, 0, 0, 0)
    text = _parameters(request).encode("utf-8")
    chunks = [
        (b"IHDR", header),
        (b"iTXt", b"parameters\0\0\0\0\0" + text),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, data) for name, data in chunks)


def _encoded_card(request: GenerationRequest, format: str, quality: int) -> bytes:
    import numpy as np

    from ldm.inference.images import encode

    pixels = np.empty((request.height, request.width, 3), dtype=np.uint8)
    pixels[:] = list(_colour(request))
    return encode(pixels, format, _parameters(request), quality=quality)


def _colour(request: GenerationRequest) -> bytes:
    return bytes.fromhex(request.request_id[:6])


def _parameters(request: GenerationRequest) -> str:
    return parameters_text(request, model=REHEARSAL, checkpoint_sha256="")


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
