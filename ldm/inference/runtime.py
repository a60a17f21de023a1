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
from dataclasses import dataclass
from typing import Any, Callable, Iterator

import torch
from torch import Tensor, nn

from ldm.errors import DeviceError, first_line
from ldm.inference import trial
from ldm.inference.cards import CUDA, HIP
from ldm.modules.processor import BF16_FLAGS, cpuinfo, processor_flags

log = logging.getLogger(__name__)

DEVICES = ("auto", "cpu", "gpu", "cuda", "dcu")
TENSOR_CORES, BF16_CORES = 7, 8  # the compute capability from which NVIDIA's cards have them
EMULATES_BF16 = ("gfx7", "gfx8", "gfx900", "gfx902", "gfx904", "gfx906", "gfx909", "gfx90c", "gfx10")
# What torch says where memory is full.
OUT_OF_MEMORY = (
    "out of memory",  # of CUDA and HIP
    "ALLOC_FAILED",  # of their libraries: CUBLAS_STATUS_, HIPBLAS_STATUS_, CUDNN_STATUS_
    "Unable to find a valid cuDNN algorithm",  # torch 1: none whose workspace fits
    "can't allocate memory",  # of the machine, old and new
    "not enough memory",
)
SUGGEST_NHWC = "PYTORCH_MIOPEN_SUGGEST_NHWC"  # with it torch hands MIOpen channels last; without, it converts them


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
            f"{describe_torch()}; install the wheel of the platform's DTK"
        )
    if torch.cuda.is_available():
        return torch.device("cuda")
    if wanted == "auto":
        log.info("no card seen by torch %s (%s): the CPU does the work", torch.__version__, describe_torch())
        return torch.device("cpu")
    raise DeviceError(
        f"device {wanted!r} needs a card, but torch {torch.__version__} ({describe_torch()}) sees "
        f"{visible_cards()}: {_variable(HIP)}, {_variable(CUDA)}; "
        "ask Slurm for one, for example --gres=dcu:1, or choose the device cpu"
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is torch's way to say that the card's or the machine's memory is full."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(said in str(error) for said in OUT_OF_MEMORY)
    )


def release_memory() -> None:
    """Give a card's memory that torch keeps in reserve back, so that smaller pieces of it can be had."""
    gc.collect()
    if torch.cuda.is_available():
        try:
            torch.cuda.empty_cache()
        except RuntimeError as error:  # many versions take a recording that failed to be under way for ever
            log.info("the card's memory stays in reserve: %s", first_line(error))


class CardMemory:
    """The memory of a card, in bytes, as torch's allocator sees it."""

    def __init__(self, device: torch.device) -> None:
        self._given = device

    @property
    def _device(self) -> torch.device:
        """The card by its number, without which many versions of torch do not tell its memory."""
        has_number = self._given.index is not None
        return self._given if has_number else torch.device(self._given.type, torch.cuda.current_device())

    def free(self) -> int:
        """What this process can still have: of the card, and of what torch keeps in reserve."""
        free, _ = torch.cuda.mem_get_info(self._device)
        return int(free + torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device))

    def peak(self, work: Callable[[], object]) -> int:
        """The most that is taken at once while `work` is done, over what was taken before."""
        torch.cuda.reset_peak_memory_stats(self._device)
        before = torch.cuda.memory_allocated(self._device)
        work()
        return int(torch.cuda.max_memory_allocated(self._device) - before)


class CardGraphs:
    """Records what a card is told to do, to tell it once more in one piece."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def record(self, work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """What does the work anew, and where its result then lies. RuntimeError where the card cannot record it."""
        graph = torch.cuda.CUDAGraph()
        # A recording that fails leaves its own stream behind as the current one, in many versions of torch.
        with torch.cuda.stream(torch.cuda.current_stream(self._device)), torch.cuda.graph(graph):
            result = work()
        return graph.replay, result

    def wait(self) -> None:
        """Wait until the card has done all that it was told."""
        torch.cuda.synchronize(self._device)


class CardLanes:
    """Memory of the machine that a card fetches from by itself, while the processor goes on."""

    def buffer(self, count: int, dtype: torch.dtype) -> Tensor:
        """Room for so many numbers. RuntimeError where the machine gives none."""
        return torch.empty(count, dtype=dtype, pin_memory=True)

    def mark(self) -> Callable[[], None]:
        """What waits until the card has done all that it was told up to here."""
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        return event.synchronize


def remember_draws(device: torch.device) -> Callable[[], None]:
    """What puts torch's global generators, the machine's and the device's, back to where they are now."""
    state = torch.get_rng_state()
    of_card = None if device.type == "cpu" else torch.cuda.get_rng_state(device)

    def draw_again() -> None:
        torch.set_rng_state(state)
        if of_card is not None:
            torch.cuda.set_rng_state(of_card, device)

    return draw_again


def memory_of(device: torch.device) -> CardMemory | None:
    """The memory of a card; None of a CPU, which other programs share and the system lends out twice."""
    return None if device.type == "cpu" else CardMemory(device)


def graphs_of(device: torch.device) -> CardGraphs | None:
    """What records the work of a card; None of a CPU, which takes its work from this process directly."""
    return None if device.type == "cpu" else CardGraphs(device)


def lanes_to(device: torch.device) -> CardLanes | None:
    """Pinned memory on the way to a card; None on the way to a CPU."""
    return None if device.type == "cpu" else CardLanes()


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


def dtype_name(dtype: torch.dtype) -> str:
    """As people say it: 'float16'."""
    return str(dtype).replace("torch.", "")


@dataclass(frozen=True)
class Arithmetic:
    """How a device computes a model: the dtype of weights and sums, the order of an image in memory, and why so."""

    dtype: torch.dtype
    why: str
    channels_last: bool = False

    def __str__(self) -> str:
        order = ", channels last" if self.channels_last else ""
        return f"{dtype_name(self.dtype)}{order} ({self.why})"


def compute_dtype(device: torch.device, precision: Precision) -> torch.dtype:
    """The dtype of the arithmetic alone; see `choose_arithmetic`."""
    return choose_arithmetic(device, precision).dtype


def choose_arithmetic(device: torch.device, precision: Precision) -> Arithmetic:
    """What is fast on the device and right in a trial: float16 on a card, bfloat16 on a CPU with units for it.

    A card at which float16 goes wrong gets bfloat16 if it has units for that (gfx906 and its like emulate it, which is
    slow), else float32. A CPU gets float16 never: it is 800 times slower than bfloat16 there.
    """
    if precision is Precision.FULL:
        return Arithmetic(torch.float32, "as precision full asks")
    if device.type == "cpu":
        if has_fast_bf16_cpu():
            return Arithmetic(torch.bfloat16, "this CPU is fast at it")
        return Arithmetic(torch.float32, "this CPU or this torch has no fast bfloat16")
    return _choose_for_card(device)


def _choose_for_card(device: torch.device) -> Arithmetic:
    wrong = []
    for dtype in (torch.float16, torch.bfloat16):
        name = dtype_name(dtype)
        if dtype is torch.bfloat16 and not has_bf16_units(device):
            wrong.append(f"{name} would be emulated")
            continue
        if trial.is_right(device, dtype):
            last = suits_channels_last(device) and trial.is_right(device, dtype, channels_last=True)
            return Arithmetic(dtype, ", ".join(["right in a trial", *wrong]), last)
        wrong.append(f"{name} is wrong here")
    return Arithmetic(torch.float32, ", ".join(wrong))


def has_bf16_units(device: torch.device) -> bool:
    """Whether a card computes bfloat16 itself. torch says yes for every DCU, also where it is emulated."""
    card = torch.cuda.get_device_properties(device)
    if _hip_version() is None:
        return bool(card.major >= BF16_CORES)
    kind = getattr(card, "gcnArchName", "")  # older builds do not tell
    return bool(kind) and not kind.startswith(EMULATES_BF16)


def suits_channels_last(device: torch.device) -> bool:
    """Whether half precision convolutions of this card are made for channels last: those of tensor cores are.

    MIOpen is faster with them on few cards, and torch converts back and forth for it unless SUGGEST_NHWC is set.
    """
    if _hip_version() is None:
        return bool(torch.cuda.get_device_properties(device).major >= TENSOR_CORES)
    return os.environ.get(SUGGEST_NHWC) == "1"


def settle_card() -> None:
    """Have the card compute what it is asked for, and the same in every process.

    TF32 keeps 10 bits of a float32: whoever asks for float32, as the second try of a picture does, means 23. cuDNN may
    try its kernels out and take the fastest, or add in any order: then the same picture has other last bits each time.
    A DCU's build is left as its maker has set it: without trying them out, MIOpen takes kernels that may be far slower.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    if _hip_version() is None:
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True


@functools.lru_cache(maxsize=None)
def has_fast_bf16_cpu() -> bool:
    """Whether this CPU has AVX512-BF16 or AMX, and this torch has the networks' operators for weights of that dtype."""
    return bool(BF16_FLAGS & processor_flags()) and trial.is_right(torch.device("cpu"), torch.bfloat16)


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


def _hip_version() -> str | None:
    return getattr(torch.version, "hip", None)


def describe_torch() -> str:
    """What torch was built for: 'a CPU build', 'a CUDA 12.1 build', 'a DCU build, HIP 5.2'."""
    if _hip_version() is not None:
        return f"a DCU build, HIP {_hip_version()}"
    return "a CPU build" if torch.version.cuda is None else f"a CUDA {torch.version.cuda} build"


def _variable(name: str) -> str:
    value = os.environ.get(name)
    return f"{name} is not set" if value is None else f"{name} is {value!r}"
