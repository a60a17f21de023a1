"""Devices, precisions, and what the torch at hand can do: the one module that knows them apart.

A DCU runs a ROCm-like build of torch that answers to `torch.cuda`; `torch.version.hip` tells it from a CUDA build.
What a version of torch lacks is found here by trying it, from 1.10 on, never by its number.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import gc
import logging
import os
import platform
from typing import Any, Iterator

import torch
from torch import Tensor, nn

from ldm.errors import DeviceError
from ldm.inference.cards import CUDA, HIP
from ldm.modules.processor import BF16_FLAGS, cpuinfo, processor_flags

log = logging.getLogger(__name__)

DEVICES = ("auto", "cpu", "gpu", "cuda", "dcu")


class Precision(enum.Enum):
    """The original's two: everything in float32, or the arithmetic in what is fast on the device."""

    FULL = "full"
    AUTOCAST = "autocast"


def pick_device(wanted: str) -> torch.device:
    """'auto', 'cpu', 'gpu', 'cuda' or 'dcu' to a torch device; a DCU build of torch answers to 'cuda'.

    'auto' takes a card where there is one. Raises DeviceError, saying what was seen, for a card that is not here.
    """
    if wanted not in DEVICES:
        raise DeviceError(f"device must be one of {', '.join(DEVICES)}, got {wanted!r}")
    if wanted == "cpu":
        return torch.device("cpu")
    if wanted == "dcu" and _hip_version() is None:
        raise DeviceError(
            f"device 'dcu' needs the platform's own build of torch, but torch {torch.__version__} is "
            f"{_build()}; install the wheel of the platform's DTK"
        )
    if torch.cuda.is_available():
        return torch.device("cuda")
    if wanted == "auto":
        log.info("no card seen by torch %s (%s): the CPU does the work", torch.__version__, _build())
        return torch.device("cpu")
    raise DeviceError(
        f"device {wanted!r} needs a card, but torch {torch.__version__} ({_build()}) sees "
        f"{visible_cards()}: {_variable(HIP)}, {_variable(CUDA)}; "
        "ask Slurm for one, for example --gres=dcu:1, or choose the device cpu"
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is torch's way to say that the card's or the machine's memory is full."""
    words = ("out of memory", "can't allocate memory", "not enough memory")  # CUDA and HIP; torch's CPU, old and new
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(said in str(error) for said in words)
    )


def release_memory() -> None:
    """Give a card's memory that torch keeps in reserve back, so that smaller pieces of it can be had."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def visible_cards() -> int:
    """How many cards this process sees."""
    return int(torch.cuda.device_count())


def describe_device(device: torch.device) -> str:
    """One line for records and logs: 'gpu NVIDIA H200, 140 GiB', 'dcu Z100, 32 GiB', 'cpu AMD EPYC 9B45, 2 threads'."""
    if device.type == "cpu":
        return f"cpu {cpuinfo('model name') or platform.machine()}, {torch.get_num_threads()} threads"
    card = torch.cuda.get_device_properties(device)
    kind = "gpu" if _hip_version() is None else "dcu"
    return f"{kind} {card.name}, {card.total_memory / 2**30:.0f} GiB"


def compute_dtype(device: torch.device, precision: Precision) -> torch.dtype:
    """The dtype of the arithmetic: float16 on a card, bfloat16 on a CPU that is fast at it, else float32.

    Never float16 on a CPU (800 times slower than bfloat16 there), nor bfloat16 on a card (emulated on older DCUs).
    """
    if precision is Precision.FULL:
        return torch.float32
    if device.type != "cpu":
        return torch.float16
    return torch.bfloat16 if has_fast_bf16_cpu() else torch.float32


@functools.lru_cache(maxsize=None)
def has_fast_bf16_cpu() -> bool:
    """Whether this CPU has AVX512-BF16 or AMX, and this torch has the networks' operators for weights of that dtype."""
    return bool(BF16_FLAGS & processor_flags()) and _runs_bf16_on_cpu()


@functools.lru_cache(maxsize=None)
def can_leave_parameters_empty() -> bool:
    """Whether this torch has tensors without memory (the meta device) that take part in building a module."""
    try:
        empty = nn.Parameter(torch.empty_like(torch.empty(2, 2), device="meta"))
        empty.detach().zero_()
        return empty.numel() == 4 and nn.Parameter(empty.detach().clone()).is_meta
    except (RuntimeError, AttributeError, TypeError):  # NotImplementedError is a RuntimeError
        return False


@contextlib.contextmanager
def without_init() -> Iterator[None]:
    """Inside, modules are built without values in their parameters: whoever opens this fills every one of them.

    Parameters have their shape and dtype, and no memory where torch can do that; buffers are computed as ever. torch.nn
    is changed while the context is open, so only one thread may build.
    """
    initialisers = [name for name in vars(nn.init) if name.endswith("_") and not name.startswith("_")]
    with contextlib.ExitStack() as undo:
        for name in initialisers:
            undo.enter_context(_replaced(nn.init, name, _leave))
        if can_leave_parameters_empty():
            undo.enter_context(_replaced(nn.Module, "register_parameter", _register_empty))
        yield


def _leave(tensor: Tensor, *_: Any, **__: Any) -> Tensor:
    return tensor


_register_parameter = nn.Module.register_parameter


def _register_empty(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
    if param is not None:
        param = nn.Parameter(torch.empty_like(param, device="meta"), requires_grad=param.requires_grad)
    _register_parameter(module, name, param)


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _runs_bf16_on_cpu() -> bool:
    def ones(*shape: int) -> Tensor:
        return torch.ones(shape, dtype=torch.bfloat16)

    try:
        with torch.no_grad():
            image = nn.functional.conv2d(ones(1, 2, 4, 4), ones(2, 2, 3, 3), padding=1)
            image = nn.functional.group_norm(image, 1, ones(2), ones(2))
            image = nn.functional.interpolate(nn.functional.silu(image), scale_factor=2.0)
            words = nn.functional.layer_norm(image.flatten(2).transpose(1, 2), (2,), ones(2), ones(2))
            out = nn.functional.gelu(nn.functional.linear(words, ones(2, 2))) @ words.transpose(1, 2)
            return bool(torch.isfinite(out.softmax(dim=-1).float()).all())
    except RuntimeError as error:
        log.info("torch %s has no bfloat16 for this CPU: %s", torch.__version__, error)
        return False


def _hip_version() -> str | None:
    return getattr(torch.version, "hip", None)


def _build() -> str:
    if _hip_version() is not None:
        return f"a DCU build, HIP {_hip_version()}"
    return "a CPU build" if torch.version.cuda is None else f"a CUDA {torch.version.cuda} build"


def _variable(name: str) -> str:
    value = os.environ.get(name)
    return f"{name} is not set" if value is None else f"{name} is {value!r}"
